#!/usr/bin/env python3
"""Print the table fti_templates of ftune.h from the registry file swift/templates.json (section era_2024).

usage: python3 tests/make_templates.py ../shared/swift/templates.json
tests/test_02_template.c checks that the table in ftune.h still says what that file says.
"""
import json
import sys

FIELDS = [("default_system", "default_system"), ("system_prefix", "system_prefix"), ("prefix", "prefix"),
          ("prompt", "prompt"), ("chat_sep", "chat_sep"), ("suffix", "suffix")]
SHARED = {"You are a helpful assistant.": "FTI_HELPFUL", "You are an AI assistant whose name is InternLM": "FTI_INTERNLM"}
NOTES = {
    "c4ai": "upstream's system_prefix has no BOS and loses the end of its last marker: kept",
    "chatglm3": "suffix and the first piece of prompt are the same id: the user marker is supervised",
    "codefuse": "of the two separator pieces only the first equals the suffix",
    "orion": "the prompt ends in the end marker, but pieces are compared whole",
    "phi3": "upstream takes the system piece letter by letter, so its placeholder is never filled",
}


def quote(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def wrap(text, first, indent, limit=118):
    """A C string literal in as many lines as it needs; first: column of its beginning."""
    lines, line = [], ""
    for word in text.replace("\n", "\n\0").replace(" ", " \0").split("\0"):
        if line and (first if not lines else indent) + len(quote(line + word).encode()) > limit:
            lines.append(quote(line))
            line = ""
        line += word
    return ("\n" + " " * indent).join(lines + [quote(line)])


def piece(p):
    if isinstance(p, dict):
        return 'FTUNE_IDS "%s"' % (p["token"] if "token" in p else " ".join(map(str, p["ids"])))
    if len(p) > 96:
        at = p.index("<|", 64)
        return quote(p[:at]) + "\n        " + quote(p[at:])
    return quote(p)


def pieces(value):
    if isinstance(value, dict):         # phi3: no piece may hold the whole placeholder
        head, tail = value["bare_string"].split("{{SYSTEM}}")
        value = [head + "{{SYS", "TEM}}" + tail]
    return "{ " + ", ".join(map(piece, value)) + " }"


def shared(text):
    return next((macro for start, macro in SHARED.items() if text.startswith(start)), None)


def main():
    registry = json.load(open(sys.argv[1], encoding="utf-8"))["era_2024"]["templates"]
    for name, t in registry.items():
        if t["modality"] != "text":
            continue
        if name in NOTES:
            print("    /* %s */" % NOTES[name])
        out, line = [], '    { .name = "%s"' % name
        declared = dict(t)
        if t["system_in_prefix"]:       # as written upstream: one prefix with the placeholder
            declared["prefix"], declared["system_prefix"] = t["system_prefix"], None
        items = []
        for key, field in FIELDS:
            v = declared[key]
            if not v:
                continue
            if key == "default_system":
                items.append(".default_system = " + (shared(v) or wrap(v, 24, 8)))
            else:
                items.append(".%s = %s" % (field, pieces(v)))
        if t["chat_sep"] is None:
            items.append(".single_round = 1")
        if t["auto_add_bos"]:
            items.append(".auto_add_bos = 1")
        for item in items:
            if "\n" in item or len((line + ", " + item).encode()) > 114:
                out.append(line + ",")
                line = "      " + item
            else:
                line += ", " + item
        print("\n".join(out + [line]) + " },")


main()
