"""What all benches share: a measured pass, agreement of two results, the machine, options of a command line."""
