"""many_texts.py - what the tokenizer parity tests share: random strings, ftune as a shared library, the comparison

Strings come in chunks of 10,000, each seeded by the seed and its number, so a run is the same for any number of
processes; chunks are kept in build/parity_texts for the next family. Whole chunks go through one call into C and one
call of the other program, in as many processes as there are processors: a million strings a family take about a minute
on two of them. A difference is shrunk to the shortest text that still differs, and shown.

Code points that Unicode 16 does not assign are left out (noncharacters aside): ftune's tables are of that version, the other
programs' partly newer.
"""
import argparse
import array
import ctypes
import functools
import importlib
import itertools
import multiprocessing
import os
import pickle
import random
import re
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
SHARED = os.environ.get("FTUNE_SHARED", os.path.join(ROOT, "..", "shared"))
VOCAB = os.path.join(SHARED, "vocab")
BUILD = os.path.join(ROOT, "build")
TEXT, PARSE, ADD = 0, 1, 4                      # ft_special
CHUNK = 10000
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes below are parallel already

SHIM = r"""
#define FTUNE_IMPLEMENTATION
#include "ftune.h"
/* texts one after the other, ends[i] where the i-th ends; ids one after the other, counts of them. -1: a buffer is full */
long many_encode(const ft_tokenizer *t, const char *p, const int64_t *ends, long n, unsigned special, int32_t *ids, size_t cap, int64_t *counts)
{
    size_t used = 0, k;
    for (long i = 0; i < n; i++) {
        int64_t from = i ? ends[i - 1] : 0;
        ft_status s = ft_tokenizer_encode(t, p + from, (size_t)(ends[i] - from), special, ids + used, cap - used, &k, NULL);
        if (s == FTUNE_ERR_BUFFER_TOO_SMALL) return -1;
        counts[i] = s ? -1 : (int64_t)k;
        used += s ? 0 : k;
    }
    return (long)used;
}
long many_decode(const ft_tokenizer *t, const int32_t *ids, const int64_t *ends, long n, char *out, size_t cap, int64_t *lengths)
{
    size_t used = 0, k;
    for (long i = 0; i < n; i++) {
        int64_t from = i ? ends[i - 1] : 0;
        ft_status s = ft_tokenizer_decode(t, ids + from, (size_t)(ends[i] - from), 0, out + used, cap - used, &k, NULL);
        if (s == FTUNE_ERR_BUFFER_TOO_SMALL) return -1;
        lengths[i] = s ? -1 : (int64_t)k;
        used += s ? 0 : k;
    }
    return (long)used;
}
/* how many of the lists come out id by id as they do at once */
long many_stream(const ft_tokenizer *t, const int32_t *ids, const int64_t *ends, long n, long *odd)
{
    static char whole[1 << 20], parts[1 << 20];
    long same = 0;
    *odd = -1;
    for (long i = 0; i < n; i++) {
        int64_t from = i ? ends[i - 1] : 0;
        size_t k = 0, m = 0;
        ft_stream s;
        ft_stream_init(&s, t, 0);
        for (int64_t at = from; at < ends[i]; at++) k += ft_stream_push(&s, ids[at], parts + k, sizeof parts - k).n;
        k += ft_stream_finish(&s, parts + k, sizeof parts - k).n;
        if (!ft_tokenizer_decode(t, ids + from, (size_t)(ends[i] - from), 0, whole, sizeof whole, &m, NULL) && k == m && !memcmp(whole, parts, k)) same++;
        else if (*odd < 0) *odd = i;
    }
    return same;
}
"""


class Error(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("message", ctypes.c_char * 500)]


class Options(ctypes.Structure):
    _fields_ = [("splitter", ctypes.c_char_p), ("lowercase", ctypes.c_int)]


def library():
    out = os.path.join(BUILD, "libftune_parity.so")
    os.makedirs(BUILD, exist_ok=True)
    subprocess.run([os.environ.get("CC", "cc"), "-O2", "-fPIC", "-shared", "-w", "-I", ROOT, "-x", "c", "-", "-o", out, "-lm"],
                   input=SHIM.encode(), check=True)
    lib = ctypes.CDLL(out)
    lib.many_encode.restype = lib.many_decode.restype = lib.many_stream.restype = ctypes.c_long
    return lib


class Ours:
    def __init__(self, lib, path, special=TEXT, lowercase=-1):
        self.lib, self.special, self.tok, err = lib, special, ctypes.c_void_p(), Error()
        if lib.ft_tokenizer_load(ctypes.byref(self.tok), path.encode(), ctypes.byref(Options(None, lowercase)), ctypes.byref(err)):
            raise SystemExit(err.message.decode())

    def encode(self, texts):
        """ids of all texts, how many each"""
        raw = [t.encode() for t in texts]
        ends = array.array("q", itertools.accumulate(map(len, raw)))
        size = 8 * sum(map(len, raw)) + 64 * len(raw)
        counts, ids, used = array.array("q", bytes(8 * len(raw))), None, -1
        while used < 0:
            ids, size = (ctypes.c_int32 * size)(), 2 * size
            used = self.lib.many_encode(self.tok, b"".join(raw), ptr(ends), ctypes.c_long(len(raw)), self.special, ids,
                                        ctypes.c_size_t(len(ids)), ptr(counts))
        return array.array("i", memoryview(ids).cast("B")[:4 * used].tobytes()), counts

    def decode(self, lists):
        flat = array.array("i", itertools.chain.from_iterable(lists))
        ends = array.array("q", itertools.accumulate(map(len, lists)))
        size, out, used = 16 * len(flat) + 64 * len(lists), None, -1
        lengths = array.array("q", bytes(8 * len(lists)))
        while used < 0:
            out, size = ctypes.create_string_buffer(size), 2 * size
            used = self.lib.many_decode(self.tok, ptr(flat), ptr(ends), ctypes.c_long(len(lists)), out,
                                        ctypes.c_size_t(len(out)), ptr(lengths))
        stops = list(itertools.accumulate(max(0, k) for k in lengths))
        return [out.raw[b - max(0, k):b].decode() if k >= 0 else None for b, k in zip(stops, lengths)] if len(lists) < 100 \
            else self.cut(out.raw[:used], lengths)

    def stream(self, lists):
        """the place of a list that id by id comes out otherwise; None: there is none"""
        flat = array.array("i", itertools.chain.from_iterable(lists))
        ends, odd = array.array("q", itertools.accumulate(map(len, lists))), ctypes.c_long()
        self.lib.many_stream(self.tok, ptr(flat), ptr(ends), ctypes.c_long(len(lists)), ctypes.byref(odd))
        return odd.value if odd.value >= 0 else None

    @staticmethod
    def cut(raw, lengths):
        at, texts = 0, []
        for k in lengths:
            texts.append(raw[at:at + k].decode() if k >= 0 else None)
            at += max(0, k)
        return texts


def ptr(a):
    return ctypes.c_void_p(a.buffer_info()[0])


RANGES = [(0x20, 0x7E)] * 12 + [(0xA0, 0x24F)] * 3 + [(0x300, 0x36F)] * 2 + [
    (0x370, 0x3FF), (0x400, 0x52F), (0x530, 0x5FF), (0x590, 0x6FF), (0x700, 0x8FF), (0x900, 0x97F), (0x980, 0xDFF), (0xE00, 0xE7F),
    (0x1000, 0x109F), (0x1100, 0x11FF), (0x1AB0, 0x1AFF), (0x1D00, 0x1DFF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x21FF),
    (0x2460, 0x27BF), (0x2E80, 0x2FDF), (0x3000, 0x30FF), (0x3040, 0x30FF), (0x3200, 0x33FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0x4E00, 0x9FFF), (0xA000, 0xABFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xF900, 0xFAFF), (0xFB00, 0xFDFF), (0xFE00, 0xFEFF),
    (0xFF00, 0xFFEF), (0xFFF9, 0xFFFD), (0x10000, 0x10FFF), (0x10400, 0x1044F), (0x11000, 0x11FFF), (0x16000, 0x16FFF),
    (0x1D100, 0x1D7FF), (0x1E000, 0x1E9FF), (0x1F100, 0x1FAFF), (0x1F1E6, 0x1F1FF), (0x20000, 0x2A6DF), (0x2B700, 0x2BA00),
    (0x2F800, 0x2FA1D), (0xE0000, 0xE01EF), (0xF0000, 0xF00FF), (0, 0x1F), (0x7F, 0x9F)]
WORDS = ("the of and to in is was for that on with hello Hello World don't I'll I'LL WE'VE we've IT'S she'd O'Neil tokenization Größe "
         "naïve café résumé Straße ﬁn ﬁne ﬀ İstanbul ΟΔΟΣ ΣΑΣ слово привет мир 你好 世界 杭州是个好地方 今天天气 東京 日本語 カタカナ ひらがな 한국어 "
         "안녕하세요 สวัสดี नमस्ते مرحبا שלום 3.14 3.14159 42 1234567 1,000,000 2024-01-31 foo_bar camelCase HTTPServer https://a.b/c?d=e "
         "http://example.com/a?b=c&d=%20 user@example.com main(void) { return 0; } self.assertEqual( for(i=0;i<n;i++) ①② ｗｉｄｅ ㍿ ﷺ ½ … — "
         "“ ” ' \" ( ) [ ] { } < > / \\ | ## ##ing # ▁ ▁▁ <s> </s> <unk> <pad> <mask> [CLS] [SEP] [UNK] [MASK] [PAD] <0x0A> <0xE4> "
         "<|user|> <cls> <sep> <extra_id_0> <eop> <|im_start|> <|im_end|> <|endoftext|> <|im_ <|extra_0|> <think> </think> <tool_call> "
         "👨‍👩‍👧‍👦 🇫🇷 👍🏽 e\u0301 a\u0301\u0323 a\u0323\u0302 가 \u1100\u1161\u11a8 'ſ \u212b ǅ ʰ 々 〇 \u3021 ©\u200d ①\u0301 \u06dd1 \ufeff "
         "\u200b \u00ad \ufffd \u2581x x\u2581 ------ ======== aaaaaaaaaaaa aaaa .... !!!! ？！ ，。 　 e\U0001d165\U0001d16e\u0316 "
         "``x'' \u08d3\u0301 \U00010efd\u0316 \U0001133b\u0301").split(" ")
SPACES = [" ", " ", " ", " ", "  ", "   ", "\n", "\t", "\r\n", "\n\n", " \n", "\n ", "\u00a0", "\u3000", "\u2003", "\u2028", "\u0085",
          "\x0b", "\u200b", "\u200d", "\ufeff", ""]
MARKS = "!?.,;:()[]{}<>|@#$%^&*+-=/\\\"'`~_…—“”’。，！？、"


@functools.lru_cache(maxsize=None)
def unassigned():
    import unicodedata2
    assert unicodedata2.unidata_version == "16.0.0"
    odd = [c for c in range(0x20000) if unicodedata2.category(chr(c)) == "Cn" and not (c & 0xFFFE == 0xFFFE or 0xFDD0 <= c <= 0xFDEF)]
    ranges = []
    for c in odd:
        if ranges and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    return re.compile("[%s]" % "".join("%c-%c" % (a, b) for a, b in ranges))


SCRIPTS = [(ord(a), ord(b)) for a, b in ("az", "az", "az", "Az", "一龥", "的目", "ぁヺ", "ая", "가힣", "àž", "ก๛")]


def random_text(r):
    parts, rnd = [], r.random
    for _ in range(r.choice((1, 2, 3, 5, 8, 13))):
        kind = rnd()
        if kind < 0.4:
            parts.append(WORDS[int(rnd() * len(WORDS))])
        elif kind < 0.65:
            for _ in range(r.choice((1, 1, 2, 3, 6))):
                a, b = RANGES[int(rnd() * len(RANGES))]
                parts.append(chr(a + int(rnd() * (b - a + 1))))
        elif kind < 0.78:
            a, b = RANGES[int(rnd() * len(RANGES))]
            if rnd() < 0.4:                                    # words that no vocabulary has, long runs of one script
                a, b = r.choice(SCRIPTS)
            n = 1 + int(rnd() * 8) if rnd() < 0.8 else r.choice((12, 17, 25, 60)) if rnd() < 0.95 else 300
            parts.append("".join([chr(a + int(rnd() * (b - a + 1))) for _ in range(n)]))
        elif kind < 0.82:
            parts.append(r.choice("aAeo'^-=_.#/0 9\n中é▁") * r.choice((2, 3, 7, 20, 40, 110)))
        elif kind < 0.87:
            parts.append(str(int(rnd() * 10 ** r.randint(1, 12))))
        elif kind < 0.93:
            parts.append(r.choice(MARKS))
        if rnd() < 0.75:
            parts.append(SPACES[int(rnd() * len(SPACES))])
    return unassigned().sub("", "".join(parts))


def texts_of(seed, chunk):
    folder = os.path.join(BUILD, "parity_texts")
    path = os.path.join(folder, "%d-%d.pickle" % (seed, chunk))
    if os.path.exists(path):
        with open(path, "rb") as f:
            return pickle.load(f)
    r = random.Random("%d/%d" % (seed, chunk))
    texts = [random_text(r) for _ in range(CHUNK)]
    os.makedirs(folder, exist_ok=True)
    with open("%s.%d" % (path, os.getpid()), "wb") as f:
        pickle.dump(texts, f)
    os.rename("%s.%d" % (path, os.getpid()), path)
    return texts


def shrink(x, differs):
    """The shortest slice-out of a text or list that still differs."""
    step = max(1, len(x) // 2)
    while step:
        i = 0
        while i < len(x):
            shorter = x[:i] + x[i + step:]
            if differs(shorter):
                x = shorter
            else:
                i += step
        step //= 2
    return x


class Family:
    """encode: texts -> lists of ids; decode: lists of ids -> texts, or None; n_ids, bytes_at: for sequences of random
    ids, of which a part are byte tokens; stream: ids one by one decode to the same text"""
    def __init__(self, ours, encode, decode=None, n_ids=0, bytes_at=(), stream=False):
        self.ours, self.encode, self.decode, self.n_ids, self.bytes_at, self.stream = ours, encode, decode, n_ids, list(bytes_at), stream


def check_chunk(f, texts, r, show):
    """differences in one chunk, and how many decodings were compared"""
    theirs = f.encode(texts)
    ids, counts = f.ours.encode(texts)
    found, decoded = 0, 0
    if counts != array.array("q", map(len, theirs)) or ids != array.array("i", itertools.chain.from_iterable(theirs)):
        one = lambda t: list(f.ours.encode([t])[0])
        for t in texts:
            if found < 3 and one(t) != f.encode([t])[0]:
                t = shrink(t, lambda s: one(s) != f.encode([s])[0])
                show("%s\n    ftune %s\n    other %s" % (ascii(t), one(t), f.encode([t])[0]))
                found += 1
    if f.decode:
        lists = theirs
        if f.n_ids:
            lists = lists + [[r.choice(f.bytes_at) if f.bytes_at and r.random() < 0.6 else r.randrange(f.n_ids)
                              for _ in range(r.randint(1, 8))] for _ in range(len(texts) // 10)]
        decoded = len(lists)
        a, b = f.ours.decode(lists), f.decode(lists)
        for x, y, l in zip(a, b, lists):
            if x != y and found < 3:
                l = shrink(l, lambda s: f.ours.decode([s]) != f.decode([s]))
                show("decode %s\n    ftune %s\n    other %s" % (l, ascii(f.ours.decode([l])[0]), ascii(f.decode([l])[0])))
                found += 1
        odd = f.ours.stream(lists) if f.stream else None
        if odd is not None:
            show("id by id: another text than %s of %s" % (ascii(a[odd]), shrink(lists[odd], lambda s: f.ours.stream([s]) is not None)))
            found += 1
    return found, decoded


def worker(make, seed, n, which, of, out):
    try:
        f, found, decoded, done, messages = make(), 0, 0, 0, []
        for chunk in range(which, (n + CHUNK - 1) // CHUNK, of):
            texts = texts_of(seed, chunk)[:n - chunk * CHUNK]
            a, b = check_chunk(f, texts, random.Random("%d/%d" % (seed, chunk)), messages.append)
            found, decoded, done = found + a, decoded + b, done + len(texts)
            if found >= 3:
                break
        out.put((found, decoded, done, messages))
    except BaseException as e:                  # also SystemExit: the parent waits for an answer
        out.put((1, 0, 0, ["%s: %s" % (type(e).__name__, e)]))


def arguments(doc):
    a = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--n", type=int, default=20000, help="strings a family")
    a.add_argument("--full", action="store_true", help="a million")
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--only", help="families, with commas between")
    a.add_argument("--jobs", type=int, default=os.cpu_count())
    a.add_argument("--no-decode", action="store_true")
    a = a.parse_args()
    a.n = 1000000 if a.full else a.n
    return a


def run(families, a):
    """families: name -> function that makes a Family, or a text: why it is skipped. The exit status."""
    passed = failed = skipped = 0
    for name, make in families:
        if a.only and name not in a.only.split(","):
            continue
        if isinstance(make, str):
            print("SKIP %s: %s" % (name, make))
            skipped += 1
            continue
        jobs = max(1, min(a.jobs, (a.n + CHUNK - 1) // CHUNK))
        queue, begin = multiprocessing.Queue(), time.time()

        def build(make=make):
            f = make()
            f.decode = None if a.no_decode else f.decode
            return f
        started = [multiprocessing.Process(target=worker, args=(build, a.seed, a.n, i, jobs, queue)) for i in range(jobs)]
        for p in started:
            p.start()
        answers = [queue.get() for _ in started]
        for p in started:
            p.join()
        found, decoded, done = (sum(x[i] for x in answers) for i in range(3))
        for x in answers:
            for m in x[3]:
                print("%s: %s" % (name, m))
        print("%-22s %8d strings, %8d decoded, %s, %.0f s" % (name, done, decoded, "%d differences or more" % found if found
                                                               else "all equal", time.time() - begin))
        sys.stdout.flush()
        passed += not found
        failed += bool(found)
    print("%d passed, %d failed, %d skipped" % (passed, failed, skipped))
    return failed != 0


def main(doc, families, *needs):
    """A whole script: its arguments, the packages it needs or a SKIP, every family of families(library)."""
    a = arguments(doc)
    try:
        for name in needs:
            importlib.import_module(name)
    except ImportError as e:
        print("SKIP %s (pip install %s into build/venv)" % (e, " ".join(needs)))
        print("0 passed, 0 failed, 1 skipped")
        return 0
    return run(families(library()), a)
