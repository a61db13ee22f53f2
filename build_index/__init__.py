"""How the public index is made: where real weights come from, what is claimed about them, and the build itself."""
