"""A page that shows what runs did: figures, curves, prototypes, robust weights, detections."""
