"""make_quant.py - golden numbers for weights in 4 and 8 bits (chapter >>6), from bitsandbytes on the CPU

Run:  build/venv/bin/python tests/golden/make_quant.py > tests/golden/quant.txt        (pip install --no-deps bitsandbytes)
Inputs are not stored: weight(rows, cols, salt) here and in tests/test_08_quantize.c give the same floats on both sides.
Each line: name, how many, then numbers, or bytes in hexadecimal behind an x."""
import sys
import bitsandbytes
import bitsandbytes.functional as bnb
import numpy as np
import torch


def weight(rows, cols, salt):
    """Many small numbers, few large ones: cubes of fill() of make_ops.py."""
    i = np.arange(rows * cols, dtype=np.int64)
    h = (i * 7919 + salt * 104729 + (i * i % 1009) * 31) % 2001
    x = (h.astype(np.float32) - np.float32(1000)) / np.float32(1000)
    return torch.from_numpy((x * x * x * np.float32(0.1)).reshape(rows, cols))


def put(name, x):
    x = x.detach().reshape(-1)
    if x.dtype in (torch.uint8, torch.int8):
        print(name, x.numel(), "x" + x.numpy().tobytes().hex())
    else:
        print(name, x.numel(), *("%.9g" % v for v in x.tolist()))


print("# bitsandbytes %s, torch %s, numpy %s, python %s" % (bitsandbytes.__version__, torch.__version__, np.__version__,
                                                             sys.version.split()[0]))
put("levels", bnb.get_4bit_type("nf4", device="cpu"))
put("map", bnb.create_dynamic_map())
# rows of 129 and 33: blocks of 64 run over the ends of rows; 263 blocks: two groups of absmax; the last block is short
for name, rows, cols, salt in (("large", 130, 129, 1), ("small", 7, 33, 2)):
    w = weight(rows, cols, salt)
    code, state = bnb.quantize_4bit(w, blocksize=64, compress_statistics=False, quant_type="nf4")
    put(name + "_code", code)
    put(name + "_absmax", state.absmax)
    if rows < 10:
        put(name + "_back", bnb.dequantize_4bit(code, state))
    code, state = bnb.quantize_4bit(w, blocksize=64, compress_statistics=True, quant_type="nf4")
    put(name + "_absmax_code", state.absmax)
    put(name + "_absmax_scale", state.state2.absmax)
    put(name + "_offset", state.offset)
    if rows < 10:
        put(name + "_double_back", bnb.dequantize_4bit(code, state))
w = weight(7, 33, 3)
code, scale, _ = bnb.int8_vectorwise_quant(w)
put("int8_code", code)
put("int8_scale", scale)
put("int8_back", bnb.int8_vectorwise_dequant(code, scale))
