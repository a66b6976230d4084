"""Run every notebook from top to bottom, without Jupyter: python notebooks/run.py. A failing cell is named."""
import glob
import json
import os
import sys
import time

import matplotlib

matplotlib.use("Agg")
failed = 0
top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
notebooks = sorted(glob.glob(os.path.join(top, "notebooks", "*.ipynb")))
for path in notebooks:
    os.chdir(top)
    names, start = {"__name__": "__main__"}, time.time()
    for number, cell in enumerate(json.load(open(path, encoding="utf-8"))["cells"]):
        if cell["cell_type"] != "code":
            continue
        try:
            exec(compile("".join(cell["source"]), f"{os.path.basename(path)} cell {number}", "exec"), names)
        except Exception as error:
            failed += 1
            print(f"{os.path.basename(path)}: cell {number}: {type(error).__name__}: {error}", file=sys.stderr)
            break
    print(f"{os.path.basename(path)}: {time.time() - start:.1f} s")
print(f"{len(notebooks) - failed} passed, {failed} failed, 0 skipped")
sys.exit(failed != 0)
