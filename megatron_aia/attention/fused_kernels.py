"""Triton kernels of the fused method: flash attention that carries the row masses along.

Each row i of a batch sees the keys ``first[i] <= j <= i``. ``row_bits[i] & key_bits[j]`` says
whether the pair counts for the term of the row. Scores are in base 2: the softmax is
``exp2(q . k * scale * log2(e) - lse)``. Tensors ``[b, heads, s, d]`` come with their strides, the
last of which is 1; per-row tensors are contiguous. Scalars are kept in float32.
"""

# Triton reads these functions as its own language: no docstrings inside arguments, no annotations
# but its own, and names in capitals are constants of the compilation.
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def _tile(pointer, rows, columns, stride, limit, HEAD: tl.constexpr):
    """Load ``[rows, columns]`` of one head; zero outside."""
    inside = (rows[:, None] < limit) & (columns[None, :] < HEAD)
    return tl.load(pointer + rows[:, None].to(tl.int64) * stride + columns[None, :], inside, 0.0)


@triton.jit
def _store(pointer, value, rows, columns, stride, limit, HEAD: tl.constexpr):
    inside = (rows[:, None] < limit) & (columns[None, :] < HEAD)
    to = pointer + rows[:, None].to(tl.int64) * stride + columns[None, :]
    tl.store(to, value.to(pointer.dtype.element_ty), inside)


@triton.jit
def forward(
    Q, K, V, First, RowBits, KeyBits, Out, Lse, Mass,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, o_b, o_h, o_s,
    heads, heads_of_key, length, scale,
    HEAD: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of rows of one query head."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = tl.program_id(1) % heads
    g = h // heads_of_key
    columns = tl.arange(0, PADDED)
    is_row = rows < length
    first = tl.load(First + b * length + rows, is_row, length)
    row_bits = tl.load(RowBits + b * length + rows, is_row, 0)
    query = _tile(Q + b * q_b + h * q_h, rows, columns, q_s, length, HEAD)

    peak = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    output = tl.zeros([ROWS, PADDED], tl.float32)
    start = tl.min(first, 0) // KEYS * KEYS
    stop = tl.minimum((tl.program_id(0) + 1) * ROWS, length)
    for block in range(start, stop, KEYS):
        keys = block + tl.arange(0, KEYS)
        key_bits = tl.load(KeyBits + b * length + keys, keys < length, 0)
        key = _tile(K + b * k_b + g * k_h, keys, columns, k_s, length, HEAD)
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        sees = (first[:, None] <= keys[None, :]) & (keys[None, :] <= rows[:, None])
        score = tl.where(sees, score, -float("inf"))
        new_peak = tl.maximum(peak, tl.max(score, 1))
        # A row that has seen no key yet has a peak of -inf, and -inf - -inf is no number.
        shift = tl.where(new_peak == -float("inf"), 0.0, new_peak)
        weight = tl.exp2(score - shift[:, None])
        shrink = tl.exp2(peak - shift)
        counts = (row_bits[:, None] & key_bits[None, :]) != 0
        total = total * shrink + tl.sum(weight, 1)
        mass = mass * shrink + tl.sum(tl.where(counts, weight, 0.0), 1)
        value = _tile(V + b * v_b + g * v_h, keys, columns, v_s, length, HEAD)
        output = output * shrink[:, None]
        output = tl.dot(weight.to(value.dtype), value, output, input_precision=PRECISION)
        peak = new_peak

    sees_none = total == 0
    total = tl.where(sees_none, 1.0, total)
    peak = tl.where(sees_none, 0.0, peak)
    output = output / total[:, None]
    _store(Out + b * o_b + h * o_h, output, rows, columns, o_s, length, HEAD)
    at = tl.program_id(1).to(tl.int64) * length + rows
    tl.store(Lse + at, peak + tl.log2(total), is_row)
    tl.store(Mass + at, mass / total, is_row)


@triton.jit
def row_shifts(
    Out, GradOut, Mass, GradMass, Shift,
    o_b, o_h, o_s, d_b, d_h, d_s, heads, length,
    HEAD: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Compute rowsum(dO * O) + g s, what every element of a row of dP is lowered by."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = tl.program_id(1) % heads
    columns = tl.arange(0, PADDED)
    is_row = rows < length
    at = tl.program_id(1).to(tl.int64) * length + rows
    output = _tile(Out + b * o_b + h * o_h, rows, columns, o_s, length, HEAD).to(tl.float32)
    grad = _tile(GradOut + b * d_b + h * d_h, rows, columns, d_s, length, HEAD).to(tl.float32)
    mass = tl.load(Mass + at, is_row, 0.0)
    grad_mass = tl.load(GradMass + b * length + rows, is_row, 0.0)
    tl.store(Shift + at, tl.sum(output * grad, 1) + grad_mass * mass, is_row)


@triton.jit
def _score_gradient(
    query, key, value, grad_output, rows, keys,
    first, row_bits, key_bits, lse, shift, grad_mass, scale, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return P and dS = P (dO . v + g [counts] - shift), ``[rows, keys]``."""
    score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    sees = (first[:, None] <= keys[None, :]) & (keys[None, :] <= rows[:, None])
    probability = tl.where(sees, tl.exp2(score - lse[:, None]), 0.0)
    grad = tl.dot(grad_output, tl.trans(value), input_precision=PRECISION)
    counts = (row_bits[:, None] & key_bits[None, :]) != 0
    grad = grad + tl.where(counts, grad_mass[:, None], 0.0) - shift[:, None]
    return probability, probability * grad


@triton.jit
def backward_query(
    Q, K, V, GradOut, First, RowBits, KeyBits, Lse, Shift, GradMass, GradQ,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, d_b, d_h, d_s, gq_b, gq_h, gq_s,
    heads, heads_of_key, length, scale, score_scale,
    HEAD: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of rows of one query head."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = tl.program_id(1) % heads
    g = h // heads_of_key
    columns = tl.arange(0, PADDED)
    is_row = rows < length
    first = tl.load(First + b * length + rows, is_row, length)
    row_bits = tl.load(RowBits + b * length + rows, is_row, 0)
    grad_mass = tl.load(GradMass + b * length + rows, is_row, 0.0)
    at = tl.program_id(1).to(tl.int64) * length + rows
    lse = tl.load(Lse + at, is_row, 0.0)
    shift = tl.load(Shift + at, is_row, 0.0)
    query = _tile(Q + b * q_b + h * q_h, rows, columns, q_s, length, HEAD)
    grad_output = _tile(GradOut + b * d_b + h * d_h, rows, columns, d_s, length, HEAD)

    grad_query = tl.zeros([ROWS, PADDED], tl.float32)
    start = tl.min(first, 0) // KEYS * KEYS
    stop = tl.minimum((tl.program_id(0) + 1) * ROWS, length)
    for block in range(start, stop, KEYS):
        keys = block + tl.arange(0, KEYS)
        key_bits = tl.load(KeyBits + b * length + keys, keys < length, 0)
        key = _tile(K + b * k_b + g * k_h, keys, columns, k_s, length, HEAD)
        value = _tile(V + b * v_b + g * v_h, keys, columns, v_s, length, HEAD)
        _, grad_score = _score_gradient(
            query, key, value, grad_output, rows, keys,
            first, row_bits, key_bits, lse, shift, grad_mass, score_scale, PRECISION,
        )  # fmt: skip
        grad_query = tl.dot(grad_score.to(key.dtype), key, grad_query, input_precision=PRECISION)
    to = GradQ + b * gq_b + h * gq_h
    _store(to, grad_query * scale, rows, columns, gq_s, length, HEAD)


@triton.jit
def backward_key_value(
    Q, K, V, GradOut, First, Stop, RowBits, KeyBits, Lse, Shift, GradMass, GradK, GradV,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, d_b, d_h, d_s,
    gk_b, gk_h, gk_s, gv_b, gv_h, gv_s,
    heads, heads_of_key, length, scale, score_scale,
    HEAD: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of keys of one key head, over the query heads that share it.

    Rows ``j <= i < Stop[j]`` see key j.
    """
    keys = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    groups = heads // heads_of_key
    b = (tl.program_id(1) // groups).to(tl.int64)
    g = tl.program_id(1) % groups
    columns = tl.arange(0, PADDED)
    is_key = keys < length
    key_bits = tl.load(KeyBits + b * length + keys, is_key, 0)
    key = _tile(K + b * k_b + g * k_h, keys, columns, k_s, length, HEAD)
    value = _tile(V + b * v_b + g * v_h, keys, columns, v_s, length, HEAD)

    grad_key = tl.zeros([KEYS, PADDED], tl.float32)
    grad_value = tl.zeros([KEYS, PADDED], tl.float32)
    start = tl.program_id(0) * KEYS // ROWS * ROWS
    stop = tl.max(tl.load(Stop + b * length + keys, is_key, 0), 0)
    for h in range(g * heads_of_key, (g + 1) * heads_of_key):
        of_head = (b * heads + h) * length
        for block in range(start, stop, ROWS):
            rows = block + tl.arange(0, ROWS)
            is_row = rows < length
            first = tl.load(First + b * length + rows, is_row, length)
            row_bits = tl.load(RowBits + b * length + rows, is_row, 0)
            grad_mass = tl.load(GradMass + b * length + rows, is_row, 0.0)
            lse = tl.load(Lse + of_head + rows, is_row, 0.0)
            shift = tl.load(Shift + of_head + rows, is_row, 0.0)
            query = _tile(Q + b * q_b + h * q_h, rows, columns, q_s, length, HEAD)
            grad_output = _tile(GradOut + b * d_b + h * d_h, rows, columns, d_s, length, HEAD)
            probability, grad_score = _score_gradient(
                query, key, value, grad_output, rows, keys,
                first, row_bits, key_bits, lse, shift, grad_mass, score_scale, PRECISION,
            )  # fmt: skip
            grad_value = tl.dot(
                tl.trans(probability.to(grad_output.dtype)), grad_output, grad_value,
                input_precision=PRECISION,
            )  # fmt: skip
            grad_key = tl.dot(
                tl.trans(grad_score.to(query.dtype)), query, grad_key, input_precision=PRECISION
            )
    to = GradK + b * gk_b + g * gk_h
    _store(to, grad_key * scale, keys, columns, gk_s, length, HEAD)
    _store(GradV + b * gv_b + g * gv_h, grad_value, keys, columns, gv_s, length, HEAD)
