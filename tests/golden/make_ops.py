"""make_ops.py - golden numbers for the ops of chapter >>6, from PyTorch in double precision

Run:  build/venv/bin/python tests/golden/make_ops.py > tests/golden/ops.txt
Inputs are not stored: fill(n, salt) below and in tests/test_06_ops.c give the same floats on both sides. Each line of
the output is: name, how many numbers, the numbers. What is computed is PyTorch's own op and its own gradient."""
import sys
import numpy as np
import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)


def fill(n, salt):
    i = np.arange(n, dtype=np.int64)
    h = (i * 7919 + salt * 104729 + (i * i % 1009) * 31) % 2001
    return (h.astype(np.float32) - np.float32(1000)) / np.float32(1000)


def t(shape, salt, grad=True):
    x = torch.tensor(fill(int(np.prod(shape)), salt).astype(np.float64).reshape(shape))
    return x.requires_grad_(grad)


def put(name, x):
    v = x.detach().reshape(-1).tolist()
    print(name, len(v), *("%.8g" % a for a in v))


print("# torch %s, numpy %s, python %s" % (torch.__version__, np.__version__, sys.version.split()[0]))

# linear with bias and adapter: N 7, in 33, out 19, R 4, scaling 2
x, W, b, A, B = t((7, 33), 1), t((19, 33), 2), t((19,), 3), t((4, 33), 4), t((19, 4), 5)
y = F.linear(x, W, b) + 2.0 * F.linear(F.linear(x, A), B)
y.backward(t((7, 19), 6, False))
for name, v in (("linear_y", y), ("linear_dx", x.grad), ("linear_dA", A.grad), ("linear_dB", B.grad), ("linear_dbias", b.grad),
                ("linear_dW", W.grad)):
    put(name, v)

# rmsnorm: N 5, C 40, eps 1e-6
x, w = t((5, 40), 7), t((40,), 8)
y = F.rms_norm(x, (40,), w, 1e-6)
y.backward(t((5, 40), 9, False))
put("rmsnorm_y", y); put("rmsnorm_dx", x.grad); put("rmsnorm_dw", w.grad)

# rope, half-rotate, theta 10000: 4 tokens at positions 0 3 17 250, 2 heads of 16
pos = torch.tensor([0., 3., 17., 250.])
angle = pos[:, None] * 10000.0 ** (-torch.arange(0, 16, 2) / 16.0)
cos, sin = (torch.cat([f(angle), f(angle)], -1)[:, None, :] for f in (torch.cos, torch.sin))
x = t((4, 2, 16), 10)
y = x * cos + torch.cat([-x[..., 8:], x[..., :8]], -1) * sin
y.backward(t((4, 2, 16), 11, False))
put("rope_y", y); put("rope_dx", x.grad)

# attention: rows of 5, 1 and 7 tokens end to end, 4 heads, 2 key heads, size 8; q k v side by side
N, H, K, D = 13, 4, 2, 8
start = torch.tensor([0] * 5 + [5] + [6] * 7)
qkv = t((N, (H + 2 * K) * D), 12)
q, k, v = qkv.split([H * D, K * D, K * D], -1)
i = torch.arange(N)
mask = (i[None, :] <= i[:, None]) & (i[None, :] >= start[:, None])
heads = lambda z, n: z.view(N, n, D).transpose(0, 1)
k, v = (heads(z, K).repeat_interleave(H // K, 0) for z in (k, v))
o = F.scaled_dot_product_attention(heads(q, H)[None], k[None], v[None], attn_mask=mask)[0].transpose(0, 1)
o.backward(t((N, H, D), 13, False))
put("attention_o", o); put("attention_dqkv", qkv.grad)

# silu_mul: N 3, F 21, gate | up
gu = t((3, 42), 14)
y = F.silu(4 * gu[:, :21]) * gu[:, 21:]
y.backward(t((3, 21), 15, False))
put("silu_mul_y", y); put("silu_mul_dgate", gu.grad[:, :21] / 4); put("silu_mul_dup", gu.grad[:, 21:])

# embedding with repeated ids
w = t((6, 10), 16)
ids = torch.tensor([3, 0, 3, 5, 3])
y = F.embedding(ids, w)
y.backward(t((5, 10), 17, False))
put("embedding_y", y); put("embedding_dw", w.grad)

# lm_head and weighted cross-entropy: M 6, C 12, V 37; the fourth row is ignored
h, W = t((6, 12), 18), t((37, 12), 19)
targets = torch.tensor([0, 36, 17, -100, 5, 5])
weight = t((6,), 20, False)
nll = F.cross_entropy(F.linear(h, 3 * W), targets, ignore_index=-100, reduction="none")
(0.5 * nll * weight).sum().backward()
put("head_logprob", -nll); put("head_dh", h.grad); put("head_dW", W.grad / 3)

# ten AdamW steps
p = torch.nn.Parameter(t((9,), 21, False).clone())
opt = torch.optim.AdamW([p], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
for s in range(10):
    p.grad = t((9,), 22 + s, False) * 10.0 ** (s % 4 - 3)
    opt.step()
put("adamw_p", p)
