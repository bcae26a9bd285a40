"""Imports every module of the packages that are its arguments; prints the faults as JSON."""

import importlib
import json
import pkgutil
import sys

faults: dict[str, str] = {}
names: list[str] = []
for package in sys.argv[1:]:
    names.append(package)
    paths = importlib.import_module(package).__path__
    names += [info.name for info in pkgutil.walk_packages(paths, f"{package}.")]
for name in names:
    try:
        importlib.import_module(name)
    except BaseException as error:
        faults[name] = f"{type(error).__name__}: {error}"
print(json.dumps({"imported": len(names), "faults": faults}))
