#!/usr/bin/env python3
"""Cut tests/golden/pieces_slice.json out of swift/golden_pieces.json: a few templates, all their recorded scenarios.

usage: python3 tests/golden/make_pieces_slice.py ../shared/swift/golden_pieces.json > tests/golden/pieces_slice.json
The expected values were recorded by running ms-swift v2.0.5 itself with the byte tokenizer; see "about" in the file.
"""
import json
import sys

KEEP = ["default", "default-generation", "qwen", "chatml", "llama3", "chatglm2", "chatglm3", "baichuan", "deepseek",
        "codefuse", "telechat", "yuan", "phi3", "c4ai"]

golden = json.load(open(sys.argv[1], encoding="utf-8"))
era = golden["era_2024"]
slim = {"about": golden["about"], "era_2024": {"tag": era["tag"], "scenarios": era["scenarios"],
                                               "results": {k: era["results"][k] for k in KEEP}}}
json.dump(slim, sys.stdout, ensure_ascii=False, separators=(",", ":"))
print()
