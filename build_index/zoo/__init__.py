"""The generated zoo: small models trained for real, and descendants whose truth is known."""
