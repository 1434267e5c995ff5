"""Finished detectors for other people: safetensors weights and a model card, on a hub if that is asked for."""
