"""Write the trained family tree into a folder, and print who descends from whom."""

import sys
from pathlib import Path

from .family import trained_family

if len(sys.argv) != 2:
    sys.exit("usage: python -m zoo FOLDER")
family = trained_family(Path(sys.argv[1]))
for name, folder in family.folders.items():
    print(f"{folder}\t{family.relations.get(name, '-')}\t{family.parents.get(name, '-')}")
