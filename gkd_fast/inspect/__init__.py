"""Is the data read right? The facts of a data set, and a page that shows them and drawn examples."""
