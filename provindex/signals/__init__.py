"""The eight signals, interoperable with Cisco model-provenance-kit 1.0.0: reported beside chance, never decisive."""
