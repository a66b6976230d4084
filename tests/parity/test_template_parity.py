"""A second opinion on chat templates: `ftune encode` against another implementation of the same rules.

    make test-parity, or python3 tests/parity/test_template_parity.py [--n ROWS] [--seed N] from the repository's root

The rules are those of ms-swift as written down in swift/SEMANTICS.md, the templates those of swift/templates.json
(FTUNE_SHARED, default ../shared). This file knows nothing of ftune.h. It first proves itself on the published goldens,
then draws awkward rows, sends them through `build/ftune encode --tokenizer bytes` (FTUNE names another binary) and
compares ids, labels, weights, dropped rows, and whether a row is refused. It needs only the standard library.
"""
import argparse, json, os, random, re, struct, subprocess, sys, zlib

FTUNE = os.environ.get("FTUNE", "build/ftune")
SHARED = os.environ.get("FTUNE_SHARED") or "../shared"
BOS, EOS, BYTE0 = 1, 2, 16
ATTRIBUTES = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": 0, "unk_token_id": 3,
              "user_token_id": 5, "bot_token_id": 6}
counts = [0, 0]
shown = {}


def check(ok, what, detail=""):
    counts[not ok] += 1
    if not ok:
        kind = what.split(" row ")[0]
        shown[kind] = shown.get(kind, 0) + 1
        if shown[kind] <= 2:
            print("FAIL %s%s" % (what, "\n    " + detail if detail else ""))


class Refused(Exception):
    pass


# -- the rules -------------------------------------------------------------------------------------------------------

def bind(pieces):
    """null, a bare string (taken letter by letter, as upstream does), or a list of texts and id lists."""
    if pieces is None:
        return None
    if isinstance(pieces, dict):
        pieces = list(pieces["bare_string"])
    return [p if isinstance(p, str) else [ATTRIBUTES[p["token"]]] if "token" in p else list(p["ids"]) for p in pieces]


class Template:
    def __init__(self, t, default_system=None):
        self.name = t["name"]
        self.prefix, self.prompt, self.sep = bind(t["prefix"]), bind(t["prompt"]), bind(t["chat_sep"])
        self.suffix, self.system_prefix = bind(t["suffix"]), bind(t["system_prefix"])
        self.default_system = t["default_system"] or None
        self.bos = t["auto_add_bos"]
        if default_system == "":
            self.default_system = None
        elif default_system is not None:
            if self.system_prefix is None:
                raise Refused("no place for a system text")
            self.default_system = default_system


def filled(piece, values):
    for key in ("SYSTEM", "QUERY", "ROUND0", "ROUND1"):
        if values.get(key) is not None:
            piece = piece.replace("{{" + key + "}}", values[key])
    return piece


def agent_split(text):
    """ERA section 8: (part, weight)."""
    if "Action:" in text and "Observation:" in text:
        rule = {"Action:": (2, 2), "Action Input:": (2, 2), "Thought:": (1, 1), "Final Answer:": (1, 1),
                "Observation:": (2, 0)}
    elif "Action:" in text or "Next:" in text:
        rule = {"Next:": (2, 2), "Action:": (2, 2), "Action Input:": (2, 2)}
    else:
        return [(text, 1)]
    parts = re.split("(" + "|".join(re.escape(k) for k in rule) + ")", text)
    out = [("", 1), (parts[0], 1)] if parts[0] else []
    for i in range(1, len(parts), 2):
        if parts[i + 1] == "" and i + 2 < len(parts):
            raise Refused("two keywords with nothing between them")
        out += [(parts[i], rule[parts[i]][0]), (parts[i + 1], rule[parts[i]][1])]
    return out


def pieces_of(t, row, swift, scale):
    """(piece, weight) in order, before merging."""
    history = row.get("history") or []
    if history and t.sep is None:
        raise Refused("several rounds")
    system = row.get("system")
    if system is None:
        system = t.default_system
    elif system == "":
        system = None
    elif t.system_prefix is None:
        raise Refused("no place for a system text")
    out = []

    def other(pieces, values, suffix=False):
        for p in pieces:
            if isinstance(p, str):
                p = filled(p, values)
            if swift == 2:
                weight = 1 if p in t.suffix else 0
            else:
                weight = 1 if suffix or scale == "all" else 0
            out.append((p, weight))

    def answer(text, wish, last):
        if wish == 0:
            out.append((text, 0))
        elif swift == 2:
            out.extend(agent_split(text) if scale == "agent" else [(text, 1)])
        else:
            out.append((text, 1 if wish == 1 or last or scale != "last_round" else 0))

    if t.bos:
        out.append(([BOS], 1 if swift == 3 and scale == "all" else 0))
    other(t.prefix if system is None else t.system_prefix, {"SYSTEM": system})
    query = row.get("query")
    rounds = [(q, r) for q, r in history] + [("" if query is None else query, row.get("response"))]
    wishes = row.get("loss") or [None] * len(rounds)
    for i, (q, r) in enumerate(rounds):
        if not q and not r:
            continue
        last = i == len(rounds) - 1
        other(t.prompt, {"QUERY": q, "ROUND0": str(i), "ROUND1": str(i + 1)})
        if not last:
            if r is None:
                raise Refused("an earlier round without an answer")
            answer(r, wishes[i], False)
            other(t.sep, {})
        elif r is not None:
            answer(r, wishes[i], True)
            other(t.suffix, {}, suffix=True)
    return out


def merged(pieces):
    """ERA section 5: adjacent texts of weight 0 are one text."""
    out = []
    for p, w in pieces:
        if out and w == 0 == out[-1][1] and isinstance(p, str) and isinstance(out[-1][0], str):
            out[-1] = (out[-1][0] + p, 0)
        else:
            out.append((p, w))
    return out


def ids_of(piece):
    return [b + BYTE0 for b in piece.encode("utf-8")] if isinstance(piece, str) else piece


def encode(t, row, swift=2, scale="default", max_length=None, truncation="delete"):
    """(ids, labels or None, weights or None) or ("dropped", n); raises Refused."""
    ids, weights = [], []
    for p, w in merged(pieces_of(t, row, swift, scale)):
        new = ids_of(p)
        ids += new
        weights += [float(w)] * len(new)
    if swift == 3:
        end = [i for p in t.suffix for i in ids_of(p)]
        starts = [i for i in range(1, len(ids)) if weights[i] == 0 and weights[i - 1] > 0]
        for i in starts:
            if ids[i:i + len(end)] == end and not any(weights[i:i + len(end)]):
                weights[i:i + len(end)] = [1.0] * len(end)
    if max_length and len(ids) > max_length:
        if truncation == "delete":
            return "dropped", len(ids)
        cut = slice(len(ids) - max_length, None) if truncation == "left" else slice(0, max_length)
        ids, weights = ids[cut], weights[cut]
    if swift == 3 and weights:
        weights[0] = 0.0
    if row.get("response") is None:
        return ids, None, None
    return ids, [i if w > 0 else -100 for i, w in zip(ids, weights)], weights


# -- the goldens -----------------------------------------------------------------------------------------------------

def crc(ids):
    return "%08x" % zlib.crc32(struct.pack("<%di" % len(ids), *ids))


def goldens(templates):
    golden = json.load(open(os.path.join(SHARED, "swift/golden_pieces.json")))["era_2024"]
    for name, results in golden["results"].items():
        if name not in templates:
            continue
        for scenario, want in results.items():
            args = golden["scenarios"][scenario]["get_template_args"]
            row = golden["scenarios"][scenario]["example"]
            scale = "agent" if args.get("use_loss_scale") else "default"
            left = "left" if args.get("truncation_strategy") == "truncation_left" else "delete"
            what = "golden %s %s" % (name, scenario)
            try:
                t = Template(templates[name])
                got = encode(t, row, 2, scale, args.get("max_length"), left)
            except Refused:
                check("error" in want, what, "refused")
                continue
            if "error" in want or "dropped" in want or got[0] == "dropped":
                check(got[0] == "dropped" and "dropped" in want, what, str(got)[:200])
                continue
            ids, labels, weights = got
            pieces = [[p if isinstance(p, str) else {"ids": p}, w] for p, w in merged(pieces_of(t, row, 2, scale))]
            # a text of no letters is nothing to a tokenizer; upstream lists only some of them
            full = lambda l: [x for x in l if x[0] != ""]
            ok = full(pieces) == full(want["pieces"]) and len(ids) == want["n"] and crc(ids) == want["crc_input_ids"]
            if want["labels"] is None:
                ok = ok and labels is None
            else:
                ok = ok and labels is not None and crc(labels) == want["labels"]["crc"]
            if "loss_scale_sum" in want:
                ok = ok and sum(weights) == want["loss_scale_sum"]
            check(ok, what, json.dumps(pieces)[:300])


def goldens_of_newest(templates):
    """Templates of the newest release obey the same rules where their class has no logic of its own: the ids say so."""
    golden = json.load(open(os.path.join(SHARED, "swift/golden_pieces.json")))["newest"]
    other = ("consecutive_roles", "loss_scale_react", "pretrain_no_chat_template", "think_multi", "think_multi_infer")
    compared = 0
    for name, results in golden["results"].items():
        for scenario, want in results.items():
            if name not in templates or scenario in other or "crc_input_ids" not in want:
                continue
            turns = [dict(m) for m in golden["scenarios"][scenario]["messages"]]
            row = {"system": turns.pop(0)["content"] if turns[0]["role"] == "system" else None}
            if turns[0]["role"] == "assistant":
                turns.insert(0, {"content": ""})
            if len(turns) % 2:
                turns.append({"content": None})
            pairs = [[q["content"], r["content"]] for q, r in zip(turns[::2], turns[1::2])]
            row.update(history=pairs[:-1], query=pairs[-1][0], response=pairs[-1][1],
                       loss=[None if m.get("loss") is None else int(m["loss"]) for m in turns[1::2]])
            scale = golden["scenarios"][scenario]["template_args"].get("loss_scale", "default")
            try:
                ids, labels, _ = encode(Template(dict({"auto_add_bos": False}, **templates[name])), row, 3, scale)
            except Refused:
                continue
            if crc(ids) != want["crc_input_ids"]:
                continue
            compared += 1
            ok = labels is None if want["labels"] is None else labels and crc(labels) == want["labels"]["crc"]
            check(ok, "golden of the newest %s %s" % (name, scenario))
    check(compared > 400, "goldens of the newest compared", str(compared))


# -- rows ------------------------------------------------------------------------------------------------------------

WORDS = ["", " ", "\n", "hi", "How are you?", "I am fine", "杭州。", "浙江的省会在哪？\n😱", "é", "e\u0301", "\u200d", "\ufeff",
         "\u00a0", "\x00", "\x01", "\x01eos_token_id", "\x01 64790", "\t\r\n", "👩‍👩‍👧‍👦", "\U0010ffff", "\uffff", "\\n",
         '"', "{", "}}", "{{", "{{QUERY}}", "{{SYSTEM}}", "{{RESPONSE}}", "{{ROUND0}}", "{{ROUND1}}", "{{ROUND",
         "{{{{QUERY}}}}", "{{QU{{QUERY}}ERY}}", "{{ROUND{{ROUND0}}}}", "{{query}}", "{{ QUERY }}", "%s%n",
         "<|endoftext|>",
         "<|im_start|>", "<|im_end|>", "<|im_end|>\n", "</s>", "<s>", "<eoa>", "\n<|EOT|>", "[SEP]</s>", "<|eot_id|>",
         "<|end|>", "<_end>", " \n\n</s>", "<|END_OF_TURN_TOKEN|>", "<end_of_turn>", "\n\n", "### Human:\n", "[INST]",
         "User: ", "<image>", "0", "null", "-100"]
TRACE = ["Thought:", "Action:", "Action Input:", "Observation:", "Final Answer:", "Next:", " x\n", "\n", "get {}",
         "observation:", "Action :", "Action Input", "Actio", "n:", "done", "Act", "Thought", " "]


class Rows:
    """Draws rows, each as (what it means, what is sent); the meaning has query, response, history, system, loss."""

    def __init__(self, seed, template):
        self.r = random.Random("%d %s" % (seed, template.name))
        self.t = template
        self.own = [p for p in (template.suffix + (template.sep or [])) if isinstance(p, str) and p]

    def words(self):
        r = self.r
        if r.random() < 0.15 and self.own:
            return r.choice(self.own) + (r.choice(WORDS) if r.random() < 0.3 else "")
        return "".join(r.choice(WORDS) for _ in range(r.choice((0, 1, 1, 1, 2, 3, 6))))

    def response(self):
        r = self.r
        if r.random() < 0.4:
            return "".join(r.choice(TRACE) for _ in range(r.randrange(1, 9)))
        return self.words()

    def one(self):
        r = self.r
        n = r.choice((0, 0, 0, 1, 1, 2, 3, 11)) if self.t.sep is not None or r.random() < 0.15 else 0
        odd = r.random() < 0.1                         # nulls, which the messages shape cannot say
        system = r.choice((None, None, "", self.words(), "Be brief.")) if r.random() < 0.8 else None
        if self.t.system_prefix is None and r.random() < 0.8:
            system = r.choice((None, ""))
        null = lambda s: None if odd and r.random() < 0.4 else s
        row = {"system": system, "query": null(self.words()), "response": self.response(),
               "history": [[null(self.words()), null(self.response())] for _ in range(n)]}
        if r.random() < 0.15:
            row["response"] = None
        if row["query"] is None and row["response"] is None and n == 0:
            row["query"] = ""                          # a row that says nothing at all is no row
        if odd:
            return row, self.flat(row)
        shape = r.randrange(5)
        if shape == 0 and r.random() < 0.6:
            row["loss"] = [r.choice((None, 0, 1)) for _ in range(n + 1)]
            return row, self.messages(row, "messages", "role", "content", ("system", "user", "assistant"))
        if shape == 1:
            return row, self.messages(row, "messages", "role", "content", ("system", "user", "assistant"))
        if shape == 2:
            return row, self.messages(row, "conversations", "from", "value", ("system", "human", "gpt"))
        if shape == 3 and n == 0 and row["response"] is not None and row["query"]:
            sent = {"instruction": row["query"], "output": row["response"], "input": ""}
            if system is not None:
                sent["system"] = system
            return row, sent
        return row, self.flat(row)

    def flat(self, row):
        sent = dict(row)
        for key in ("system", "query", "response", "history"):
            if sent[key] in (None, []) and self.r.random() < 0.5:
                del sent[key]                         # null, or an empty history: saying nothing means the same
        items = list(sent.items())
        self.r.shuffle(items)
        return dict(items)

    def messages(self, row, key, role, content, names):
        out = [] if row["system"] is None else [{role: names[0], content: row["system"]}]
        rounds = row["history"] + [[row["query"], row["response"]]]
        for (q, a), wish in zip(rounds, row.get("loss") or [None] * len(rounds)):
            out.append({role: names[1], content: q})
            if a is not None:
                m = {role: names[2], content: a}
                if wish is not None:
                    m["loss"] = bool(wish)
                out.append(m)
        return {key: out}


# -- ftune -----------------------------------------------------------------------------------------------------------

def run(args, rows):
    text = "".join(json.dumps(r, ensure_ascii=i % 2 == 0) + "\n" for i, r in enumerate(rows))
    p = subprocess.run([FTUNE, "encode", "--tokenizer", "bytes"] + args, input=text.encode("utf-8"),
                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lines = p.stdout.decode("utf-8").split("\n")[:-1]
    return p.returncode, lines, p.stderr.decode("utf-8", "replace")


OPTIONS = [  # swift, loss scale, its name on the command line, max_length, truncation, default system
    (2, "default", None, None, None, None), (2, "agent", "agent", None, None, None),
    (2, "agent", "agent", 60, "left", None), (2, "default", None, 90, "delete", None),
    (2, "default", None, 40, "right", ""), (2, "default", None, None, None, "Sys {{QUERY}} 系统"),
    (3, "default", None, None, None, None), (3, "default", "default", 50, "left", None),
    (3, "last_round", "last_round", None, None, ""), (3, "all", "all", None, None, None),
    (3, "all", "all", 30, "left", None), (3, "default", None, 120, "delete", None),
    (3, "default", None, 70, "right", "</s>"), (3, "last_round", "last_round", 25, "left", None),
]


def compare(template, option, n, seed):
    swift, scale, scale_name, limit, truncation, default_system = option
    args = ["--template", template["name"], "--swift", str(swift)]
    if scale_name:
        args += ["--loss-scale", scale_name]
    if limit:
        args += ["--max-length", str(limit)]
    if truncation:
        args += ["--truncation", truncation]
    if default_system is not None:
        args += ["--system", default_system]
    plain = Template(template)
    rows = Rows(seed, plain)
    drawn = [rows.one() for _ in range(n)]
    what = " ".join(args[1:])
    status, lines, errors = run(args, [sent for _, sent in drawn])
    if len(lines) != n:
        check(False, what, "expected %d lines, found %d: status %d, %s" % (n, len(lines), status, errors[:300]))
        return
    refused = 0
    for i, ((row, sent), line) in enumerate(zip(drawn, lines)):
        name = "%s row %d %s" % (what, i, json.dumps(sent))
        try:
            got = json.loads(line)
        except ValueError as e:
            check(False, name, "no JSON: %s: %s" % (e, line[:300]))
            continue
        try:
            want = encode(Template(template, default_system), row, swift, scale, limit, truncation or "delete")
        except Refused as e:
            refused += 1
            ok = set(got) == {"error"} and isinstance(got["error"], str)
            check(ok, name, "not refused: %s: %s" % (e, line[:200]))
            continue
        if "error" in got:
            refused += 1
            check(False, name, "refused: " + got["error"])
            continue
        if want[0] == "dropped":
            ok = got == {"dropped": "too_long", "n": want[1]}
            check(ok, name, "expected dropped %d, found %s" % (want[1], line[:200]))
            continue
        ids, labels, weights = want
        expected = {"input_ids": ids, "labels": labels}
        if scale_name and labels is not None:
            expected["loss_scale"] = weights
        if got.get("loss_scale", 0) is None:
            del got["loss_scale"]
        text = lambda d: "%s" % {k: show(v) for k, v in d.items()}
        check(got == expected, name, "expected %s\n    found    %s" % (text(expected), text(got)))
    check(status == (1 if refused else 0), what + " exit status", "%d with %d refused rows" % (status, refused))


def show(v):
    """Ids as the text they are; runs of equal numbers once."""
    if v is None:
        return v
    out, last = [], None
    for x in v:
        if isinstance(x, int) and BYTE0 <= x < BYTE0 + 256:
            if not (out and isinstance(out[-1], bytes)):
                out.append(b"")
            out[-1] += bytes([x - BYTE0])
        elif x == last:
            out[-1] = "%s*%d" % (x, int(str(out[-1]).split("*")[1]) + 1)
        else:
            out.append("%s*1" % x)
        last = x
    return out


def plain_text(templates, seed):
    """use_chat_template false: [bos] text [eos], the answer and eos supervised. A text row always takes this form."""
    r = Rows(seed, Template(templates["qwen"]))
    texts = [r.words() + "x" for _ in range(30)]
    for args in ([], ["--no-chat-template"]):
        _, lines, _ = run(["--template", "qwen"] + args, [{"text": s} for s in texts])
        for s, line in zip(texts, lines):
            ids = [BOS] + ids_of(s) + [EOS]
            want = {"input_ids": ids, "labels": [-100] + ids[1:]}
            check(json.loads(line) == want, "plain text row " + json.dumps(s), line)
    pairs = [(r.words(), r.words() + "x") for _ in range(30)]
    _, lines, _ = run(["--template", "qwen", "--no-chat-template"], [{"query": q, "response": a} for q, a in pairs])
    for (q, a), line in zip(pairs, lines):
        q = filled(q, {"ROUND0": "0", "ROUND1": "1"})  # its whole frame is {{QUERY}}, see section 3
        ids = [BOS] + ids_of(q) + ids_of(a) + [EOS]
        labels = [-100] * (1 + len(ids_of(q))) + ids_of(a) + [EOS]
        want = {"input_ids": ids, "labels": labels}
        check(json.loads(line) == want, "no chat template row " + json.dumps([q, a]), line)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=40, help="rows per template and set of options")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--template", help="only this one")
    a = parser.parse_args()
    path = os.path.join(SHARED, "swift/templates.json")
    if not os.path.exists(path):
        print("SKIP no %s (set FTUNE_SHARED)" % path)
        print("0 passed, 0 failed, 1 skipped")
        return 0
    registries = json.load(open(path))
    templates = {k: v for k, v in registries["era_2024"]["templates"].items() if v["modality"] == "text"}
    check(len(templates) == 42, "number of text templates", str(len(templates)))
    goldens(templates)
    goldens_of_newest(registries["newest"]["templates_text"])
    plain_text(templates, a.seed)
    for name, template in templates.items():
        if a.template in (None, name):
            for k, option in enumerate(OPTIONS):
                compare(template, option, a.n, a.seed * 100 + k)
    for kind, n in shown.items():
        if n > 2:
            print("FAIL %s: %d in all" % (kind, n))
    print("%d passed, %d failed, 0 skipped" % tuple(counts))
    return counts[1] > 0


sys.exit(main())
