#!/usr/bin/env python3
"""test_random_files_parity.py - small tokenizer.json files of every kind, made by chance, against Hugging Face tokenizers

    build/venv/bin/python tests/parity/test_random_files_parity.py [--n 2000] [--full] [--seed 1] [--show 3]

Each file has a model of a few tokens and what chance puts around it: normalizers, pre-tokenizers, decoders, post-processors,
added tokens with all their flags. Of each, a dozen awkward texts are encoded three ways (control tokens parsed; with what
stands around a sentence; control tokens as text), with offsets and without; ids and random ids are decoded. A file that
only we refuse is counted by what we say of it. Where we differ on purpose (ftune.h says where) nothing is compared:

  - control tokens as text: if the model knows some, theirs may make them of text
  - special tokens that are shown otherwise than the file writes them are never skipped by theirs
  - of two added tokens with one normal form theirs takes any
  - offsets where a character vanishes, and for bytes of unknown text

Needs tokenizers 0.23 or later and a C compiler.
"""
import argparse
import collections
import ctypes
import json
import os
import random
import re
import subprocess
import sys

from many_texts import ADD, BUILD, PARSE, ROOT, TEXT, Error

MARK = "\u2581"
WORDS = ("a b ab ba abc S s Se \u00e9 e\u0301 \u00c9 E e x \u00a0 \u3000 \u2581 \u2581a ##a ##b a</w> 1 23 \u4e2d \u4e2d\u6587 \u6587 \U0001f600 's ! , - _ "
         "\ufb01 \u0130 \u1e9e \u00df \u212b <s> </s> <S> [UNK] <unk> <x> <X\u00e9> \uff1cs\uff1e Ab AB \u0120 \u0120a \u010a \u00ff \u0301 \ufffd \u200b \0 "
         "\u30ab\u3099 \ud55c \u0627\u0644 <0x41> <0xE4> \u03a3 \u2028 don't aa aaa bb bbb").split(" ") + [" ", "  ", "\t", "\n", "\r\n"]
BEHAVIORS = ["Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"]
LETTER = [chr(b if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255 else 256 + b if b <= 32 else 289 + b - 127 if b <= 160 else 323) for b in range(256)]
BYTES = ["<0x%02X>" % b for b in range(256)]


def step(kind, **more):
    return dict(type=kind, **more)


def coin(r):
    return r.random() < 0.5


def pattern(r):
    return r.choice([{"String": r.choice(["a", " ", "b", "ab", "S", MARK, "\u00e9", "aa"])},
                     {"Regex": r.choice(["a+", r"\s+", "[ab]", r"\p{N}", r"\w+|[^\w\s]+", "(?<=a)b", r" ?\p{L}+", r"\s", "."])}])


def level(r):
    return step("ByteLevel", add_prefix_space=coin(r), trim_offsets=coin(r), use_regex=coin(r))


def metaspace(r):
    return step("Metaspace", replacement=MARK, prepend_scheme=r.choice(["always", "first", "never"]), split=coin(r))


def normalizer(r):
    return r.choice([lambda: step(r.choice(["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel"])),
                     lambda: step("Strip", strip_left=coin(r), strip_right=coin(r)), lambda: step("Prepend", prepend=r.choice([MARK, "a", " ", "ab"])),
                     lambda: step("Replace", pattern=pattern(r), content=r.choice([MARK, "", "a", " ", "xy", "\u00e9"])),
                     lambda: step("BertNormalizer", clean_text=coin(r), handle_chinese_chars=coin(r), strip_accents=r.choice([None, True, False]), lowercase=coin(r))])()


def pre_tokenizer(r):
    return r.choice([lambda: step(r.choice(["BertPreTokenizer", "Whitespace", "WhitespaceSplit", "UnicodeScripts"])), lambda: level(r), lambda: metaspace(r),
                     lambda: step("Split", pattern=pattern(r), behavior=r.choice(BEHAVIORS), invert=coin(r)), lambda: step("Punctuation", behavior=r.choice(BEHAVIORS)),
                     lambda: step("Digits", individual_digits=coin(r)), lambda: step("CharDelimiterSplit", delimiter=r.choice(["a", " ", "\u4e2d"])),
                     lambda: step("FixedLength", length=r.randint(1, 4))])()


def decoder(r):
    return r.choice([lambda: step(r.choice(["ByteFallback", "Fuse"])), lambda: level(r), lambda: metaspace(r),
                     lambda: step("Replace", pattern=pattern(r), content=r.choice([MARK, "", " ", "xy"])), lambda: step("BPEDecoder", suffix=r.choice(["</w>", "a"])),
                     lambda: step("Strip", content=r.choice([" ", "a", MARK]), start=r.randint(0, 2), stop=r.choice([0, 0, 1])),
                     lambda: step("WordPiece", prefix=r.choice(["##", "a"]), cleanup=coin(r)),
                     lambda: step("CTC", pad_token=r.choice(["<pad>", "a"]), word_delimiter_token=r.choice(["|", "b"]), cleanup=coin(r))])()


def none_one_or_more(r, make, name, none):
    x = r.random()
    return None if x < none else make(r) if x < 0.7 else {"type": "Sequence", name: [make(r) for _ in range(r.randint(0, 3))]}


def bpe(r, in_bytes):
    prefix, suffix = ("", "") if in_bytes and r.random() < 0.9 else (r.choice(["", "", "", "##"]), r.choice(["", "", "", "</w>"]))
    words = ["".join(LETTER[b] for b in w.encode()) if in_bytes and r.random() < 0.95 else w for w in r.sample(WORDS, r.randint(5, 40))]
    vocab, merges = {}, []

    def add(t):
        if t:
            vocab.setdefault(t, len(vocab))
    alphabet = [c for c in sorted(set("".join(words))) if r.random() < 0.9]
    if in_bytes and r.random() < 0.7:
        alphabet = list(LETTER)
    r.shuffle(alphabet)
    for c in alphabet:
        for t in (c, prefix + c, c + suffix, prefix + c + suffix):
            add(t)
    for _ in range(r.randint(0, 40)):
        a, b = r.choice(list(vocab)), r.choice(list(vocab))
        w = r.choice(words)
        if len(w) > 1 and coin(r):
            a, b = w[:len(w) // 2], prefix + w[len(w) // 2:] + r.choice(["", suffix])
        if a not in vocab or b not in vocab or (suffix and a.endswith(suffix)) or not b.startswith(prefix) or len(a + b) > 20:
            continue
        merges.append([a, b])
        add(a + b[len(prefix):])
    for w in words:
        if r.random() < 0.4:
            add(w)
    unk, fallback = r.choice(["<unk>", "<unk>", None]), r.random() < 0.2
    add(unk)
    for t in BYTES if fallback else []:
        add(t)
    if r.random() < 0.2:
        r.shuffle(merges)
    return step("BPE", dropout=None, unk_token=unk, continuing_subword_prefix=prefix, end_of_word_suffix=suffix or None, fuse_unk=coin(r), byte_fallback=fallback,
                ignore_merges=r.random() < 0.35, vocab=vocab, merges=merges if coin(r) or any(" " in a + b for a, b in merges) else [" ".join(m) for m in merges])


def unigram(r):
    fallback = r.random() < 0.3
    words = list(dict.fromkeys(r.sample(WORDS, r.randint(8, 50)) + ["<unk>", "a", MARK] + (BYTES if fallback else [])))
    return step("Unigram", unk_id=words.index("<unk>"), byte_fallback=fallback, vocab=[[w, -r.choice([0, 1, 2, 2.5, 3.25, r.random() * 8])] for w in words])


def words_of(r, unk, prefix=""):
    return {w: i for i, w in enumerate(dict.fromkeys([unk] + [p + w for w in r.sample(WORDS, r.randint(8, 50)) for p in {"", r.choice(["", prefix])}]))}


def made(r):
    kind = r.choice(["bytes", "bytes", "characters", "characters", "word-piece", "word-level", "unigram", "unigram"])
    model = {"bytes": lambda: bpe(r, True), "characters": lambda: bpe(r, False), "unigram": lambda: unigram(r),
             "word-piece": lambda: step("WordPiece", unk_token="[UNK]", continuing_subword_prefix="##", max_input_chars_per_word=r.choice([100, 3]), vocab=words_of(r, "[UNK]", "##")),
             "word-level": lambda: step("WordLevel", unk_token="<unk>", vocab=words_of(r, "<unk>"))}[kind]()
    pre = none_one_or_more(r, pre_tokenizer, "pretokenizers", 0.3)
    if kind == "bytes":
        pre = level(r) if coin(r) else {"type": "Sequence", "pretokenizers": [pre_tokenizer(r) for _ in range(r.randint(0, 2))] + [level(r)]}
    ids = {t: i for i, t in enumerate(t for t, _ in model["vocab"])} if kind == "unigram" else dict(model["vocab"])
    added = []
    for _ in range(r.choice([0, 0, 1, 2, 3, 5, 8])):
        content = r.choice(WORDS + list(ids)[:60]) if r.random() < 0.7 else r.choice(WORDS) + r.choice(WORDS)
        if content and all(a["content"] != content for a in added):
            special = coin(r)
            added.append(dict(id=ids.setdefault(content, len(ids)), content=content, single_word=r.random() < 0.2, lstrip=r.random() < 0.25, rstrip=r.random() < 0.25,
                              normalized=not special if coin(r) else coin(r), special=special))

    def post_processor(r):
        a, b = r.choice(list(ids)), r.choice(list(ids))
        single = [{"Sequence": {"id": "A", "type_id": 0}}]
        for _ in range(r.randint(0, 3)):
            single.insert(r.randint(0, len(single)), {"SpecialToken": {"id": r.choice([a, b]), "type_id": 0}})
        pair = dict(sep=[a, ids[a]], cls=[b, ids[b]])
        return r.choice([lambda: level(r), lambda: level(r), lambda: step("RobertaProcessing", trim_offsets=coin(r), add_prefix_space=coin(r), **pair),
                         lambda: step("BertProcessing", **pair),
                         lambda: step("TemplateProcessing", single=single, pair=[{"Sequence": {"id": x, "type_id": 0}} for x in "AB"],
                                      special_tokens={t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in (a, b)})])()
    limits = dict(direction="Right", max_length=5, strategy="LongestFirst", stride=0) if r.random() < 0.2 else None
    return kind, dict(version="1.0", truncation=limits, padding=None, added_tokens=added, normalizer=none_one_or_more(r, normalizer, "normalizers", 0.35),
                      pre_tokenizer=pre, post_processor=none_one_or_more(r, post_processor, "processors", 0.3),
                      decoder=level(r) if kind == "bytes" and coin(r) else none_one_or_more(r, decoder, "decoders", 0.3), model=model)


def text_of(r, file):
    contents, parts = [a["content"] for a in file["added_tokens"]], []
    for _ in range(r.choice([1, 2, 3, 4, 6, 10])):
        part = r.choice(contents if contents and r.random() < 0.3 else WORDS)
        parts.append(r.choice([part] * 6 + [part.lower(), part.upper(), part[1:], part[:-1], " ", "a"]))
    return "".join(parts)


class Span(ctypes.Structure):
    _fields_ = [("begin", ctypes.c_size_t), ("end", ctypes.c_size_t)]


class Ours:
    def __init__(self, lib, path):
        self.lib, self.tok, error = lib, ctypes.c_void_p(), Error()
        lib.ft_tokenizer_load(ctypes.byref(self.tok), path.encode(), None, ctypes.byref(error))
        self.refused = error.message.decode(errors="replace")

    def encode(self, text, special, offsets=True):
        """ids and their offsets, or a message and None"""
        raw, n, error = text.encode(), ctypes.c_size_t(), Error()
        cap = 10 * len(raw) + 100
        ids, at = (ctypes.c_int32 * cap)(), (Span * cap)()
        if self.lib.ft_tokenizer_encode_spans(self.tok, raw, ctypes.c_size_t(len(raw)), special, None, ctypes.c_size_t(0), ids, at if offsets else None, ctypes.c_size_t(cap),
                                              ctypes.byref(n), ctypes.byref(error)):
            return error.message.decode(errors="replace"), None
        return list(ids[:n.value]), [(x.begin, x.end) for x in at[:n.value]]

    def decode(self, ids, skip):
        out, n = ctypes.create_string_buffer(100 * len(ids) + 100), ctypes.c_size_t()
        self.lib.ft_tokenizer_decode(self.tok, (ctypes.c_int32 * (len(ids) + 1))(*ids), ctypes.c_size_t(len(ids)), int(skip), out, ctypes.c_size_t(len(out)), ctypes.byref(n), None)
        return out.raw[:n.value].decode()


class Run:
    def __init__(self, show):
        self.show, self.count, self.refused = show, collections.Counter(), collections.Counter()

    def same(self, what, seed, file, given, ours, theirs):
        self.count[what] += 1
        if ours != theirs:
            self.count["%s that differ" % what] += 1
            if self.count["%s that differ" % what] <= self.show:
                file = dict(file, model={k: v for k, v in file["model"].items() if k not in ("vocab", "merges")})
                print("%s: file %d: %s\n    ftune %s\n    other %s\n    %s" % (what, seed, ascii(given), ascii(ours), ascii(theirs), json.dumps(file)))

    def file(self, seed, lib, path):
        from tokenizers import Tokenizer
        r = random.Random(seed)
        kind, file = made(r)
        text = json.dumps(file, ensure_ascii=False)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        ours = Ours(lib, path)
        try:
            other = Tokenizer.from_str(text)
            other.no_truncation()
        except BaseException:                       # its panics are no Exceptions
            return
        if ours.refused:
            self.refused[re.sub(r"line \d+: |, found .*|(?<=token )\d+", "", ours.refused.split("json: ")[-1], flags=re.S)] += 1
            return
        shown = [other.id_to_token(a["id"]) for a in file["added_tokens"]]
        special = [a for a in file["added_tokens"] if a["special"]]
        if len(set(shown)) < len(shown):
            return
        self.count["files"] += 1
        self.one(seed, r, kind, file, ours, other, any(a["id"] < len(file["model"]["vocab"]) for a in special),
                 any(other.id_to_token(a["id"]) != a["content"] for a in special) or len(set(shown) | {a["content"] for a in special}) > len(shown))

    def one(self, seed, r, kind, file, ours, other, knows_special, never_skipped):
        model, lists = file["model"], []
        vanish = "merges" in model and (not model["unk_token"] or model["byte_fallback"] and (model["continuing_subword_prefix"] or model["end_of_word_suffix"]))
        for special in [PARSE, PARSE | ADD, TEXT] * 12:
            text = text_of(r, file)
            other.encode_special_tokens = special == TEXT
            try:
                e = other.encode(text, add_special_tokens=bool(special & ADD))
            except BaseException:
                continue
            ids, at = ours.encode(text, special)
            if special == TEXT and knows_special:
                continue
            self.same("ids", seed, file, (text, special), ids, e.ids)
            if ids != e.ids:
                continue
            self.same("ids without offsets", seed, file, (text, special), ours.encode(text, special, False)[0], ids)
            lists.append(ids)
            if not vanish and not (kind == "unigram" and model["byte_fallback"]):
                n = [0]
                for c in text:
                    n.append(n[-1] + len(c.encode()))
                theirs = [(n[min(a, len(text))], n[min(b, len(text))]) for a, b in e.offsets]
                at = [(0, 0) if x == (n[-1], n[-1]) and y == (0, 0) else x for x, y in zip(at, theirs)]
                self.same("offsets", seed, file, (text, special, e.tokens), at, theirs)
        size = other.get_vocab_size()
        lists += [[r.randrange(size) for _ in range(r.randint(1, 6))] for _ in range(8)]
        if "merges" in model and file["decoder"] is None:        # bytes, where theirs shows their letters
            return
        for ids in lists:
            for skip in (False, True):
                if skip and never_skipped:
                    continue
                try:
                    text = other.decode(ids, skip_special_tokens=skip)
                except BaseException:
                    continue
                self.same("decoded", seed, file, (ids, skip), ours.decode(ids, skip), text)


def library():
    out = os.path.join(BUILD, "libftune_random_files.so")
    os.makedirs(BUILD, exist_ok=True)
    subprocess.run([os.environ.get("CC", "cc"), "-O1", "-fPIC", "-shared", "-w", "-DFTUNE_IMPLEMENTATION", "-x", "c", os.path.join(ROOT, "ftune.h"), "-o", out, "-lm"], check=True)
    return ctypes.CDLL(out)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--n", type=int, default=2000, help="files")
    p.add_argument("--full", action="store_true", help="100,000")
    p.add_argument("--seed", type=int, default=1, help="of the first")
    p.add_argument("--show", type=int, default=3, help="differences of a kind that are shown")
    a = p.parse_args()
    try:
        import tokenizers
        if tuple(map(int, tokenizers.__version__.split(".")[:2])) < (0, 23):
            raise ImportError("tokenizers %s is too old" % tokenizers.__version__)
    except ImportError as e:
        print("SKIP %s (pip install tokenizers into build/venv)\n0 passed, 0 failed, 1 skipped" % e)
        return 0
    run, lib, path = Run(a.show), library(), os.path.join(BUILD, "random_file.%d.json" % os.getpid())
    quiet, errors = os.open(os.devnull, os.O_WRONLY), os.dup(2)
    os.dup2(quiet, 2)                               # it writes a page for each of its panics
    try:
        for seed in range(a.seed, a.seed + (100000 if a.full else a.n)):
            run.file(seed, lib, path)
    finally:
        os.dup2(errors, 2)
        os.path.exists(path) and os.remove(path)
    for what, n in run.refused.most_common():
        print("refused %5d times: %s" % (n, what))
    print(", ".join("%d %s" % (n, what) for what, n in sorted(run.count.items())))
    failed = [what for what in run.count if what.endswith("that differ")]
    print("%d passed, %d failed, 0 skipped" % (4 - len(failed), len(failed)))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
