"""CTranslate2 models: faster-whisper's, OPUS-MT's and others' `model.bin`."""
