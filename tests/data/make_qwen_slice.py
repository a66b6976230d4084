#!/usr/bin/env python3
"""Cut from qwen.tiktoken (151,643 ranks) the few that the sentences below need, with their original ranks.

A sentence keeps its ids when every merge that happens in it is kept: those are the last two parts of each of its
tokens, and of those parts, down to bytes. All 256 bytes are kept, and the last rank, by which ftune knows the family.

    python3 tests/data/make_qwen_slice.py PATH/TO/qwen.tiktoken > tests/data/qwen_slice.tiktoken
"""
import base64
import re
import sys

SENTENCES = """
system
user
assistant
You are a helpful assistant.
How are you? I am fine
How are you? I am fine, and you? What is your name? My name is
你好 你是谁 你好！
杭州是个好地方 今天天气真好呀 浙江的省会在哪 浙江的省会在杭州
12345+234=？ 12579
Hello World! hello world
What is 2 + 3? 5
The cat sat on the mat.
<|im_start|> <|im_end|> <|endoftext|>
"""


def join(ranks, word, stop=1):
    """The parts of word when neighbours are joined by rank, until stop are left; and all parts met on the way."""
    parts = [bytes([b]) for b in word]
    met = set(parts)
    while len(parts) > stop:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], 1 << 60))
        both = parts[best] + parts[best + 1]
        if both not in ranks:
            break
        parts[best:best + 2] = [both]
        met.add(both)
    return met


def main():
    ranks = {}
    for line in open(sys.argv[1], "rb"):
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    keep = {bytes([b]) for b in range(256)} | {max(ranks, key=ranks.get)}
    # pieces as ftune's qwen splitter cuts them, near enough: a joined token never crosses a cut, and more is no harm
    pieces = re.findall(r"(?:[^\r\n\w]|_)?[^\W\d_]+|\d| ?[^\s\w]+[\r\n]*|\s*[\r\n]+|\s+", SENTENCES) + ["\n", " ", "\n\n"]
    pieces += re.findall(r"[\u4e00-\u9fff]+", SENTENCES)
    for piece in pieces:
        keep |= join(ranks, piece.encode())
    for token in sorted(keep, key=ranks.get):
        print(base64.b64encode(token).decode(), ranks[token])


main()
