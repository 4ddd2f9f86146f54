"""Triton kernels of the fused method: flash attention that carries the row masses along.

A row i sees the keys ``First[i] <= j <= Last[i]``, a key j is seen by rows ``Start[j] <= i <
Stop[j]`` only. ``RowBits[i] & KeyBits[j]`` says whether the pair counts for the term of the row.
Scores are in base 2: the softmax is ``exp2(q . k * scale * log2(e) - lse)``. Tensors ``[b, heads,
tokens, d]`` come with their strides, the last of which is 1; what there is one of for each row or
key is contiguous. Rows are the queries of this rank, keys those of whole sequences of the batch.
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
    Q, K, V, First, Last, RowBits, KeyBits, Out, Lse, Mass,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, o_b, o_h, o_s,
    heads, heads_of_key, num_rows, num_keys, scale,
    HEAD: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of rows of one query head."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = tl.program_id(1) % heads
    g = h // heads_of_key
    columns = tl.arange(0, PADDED)
    is_row = rows < num_rows
    first = tl.load(First + b * num_rows + rows, is_row, num_keys)
    last = tl.load(Last + b * num_rows + rows, is_row, -1)
    row_bits = tl.load(RowBits + b * num_rows + rows, is_row, 0)
    query = _tile(Q + b * q_b + h * q_h, rows, columns, q_s, num_rows, HEAD)

    peak = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    output = tl.zeros([ROWS, PADDED], tl.float32)
    start = tl.min(first, 0) // KEYS * KEYS
    stop = tl.max(last, 0) + 1
    for block in range(start, stop, KEYS):
        keys = block + tl.arange(0, KEYS)
        key_bits = tl.load(KeyBits + b * num_keys + keys, keys < num_keys, 0)
        key = _tile(K + b * k_b + g * k_h, keys, columns, k_s, num_keys, HEAD)
        score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        sees = (first[:, None] <= keys[None, :]) & (keys[None, :] <= last[:, None])
        score = tl.where(sees, score, -float("inf"))
        new_peak = tl.maximum(peak, tl.max(score, 1))
        # A row that has seen no key yet has a peak of -inf, and -inf - -inf is no number.
        shift = tl.where(new_peak == -float("inf"), 0.0, new_peak)
        weight = tl.exp2(score - shift[:, None])
        shrink = tl.exp2(peak - shift)
        counts = (row_bits[:, None] & key_bits[None, :]) != 0
        total = total * shrink + tl.sum(weight, 1)
        mass = mass * shrink + tl.sum(tl.where(counts, weight, 0.0), 1)
        value = _tile(V + b * v_b + g * v_h, keys, columns, v_s, num_keys, HEAD)
        output = output * shrink[:, None]
        output = tl.dot(weight.to(value.dtype), value, output, input_precision=PRECISION)
        peak = new_peak

    sees_none = total == 0
    total = tl.where(sees_none, 1.0, total)
    peak = tl.where(sees_none, 0.0, peak)
    output = output / total[:, None]
    _store(Out + b * o_b + h * o_h, output, rows, columns, o_s, num_rows, HEAD)
    at = tl.program_id(1).to(tl.int64) * num_rows + rows
    tl.store(Lse + at, peak + tl.log2(total), is_row)
    tl.store(Mass + at, mass / total, is_row)


@triton.jit
def row_shifts(
    Out, GradOut, Mass, GradMass, Shift,
    o_b, o_h, o_s, d_b, d_h, d_s, heads, num_rows,
    HEAD: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Compute rowsum(dO * O) + g s, what every element of a row of dP is lowered by."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = tl.program_id(1) % heads
    columns = tl.arange(0, PADDED)
    is_row = rows < num_rows
    at = tl.program_id(1).to(tl.int64) * num_rows + rows
    output = _tile(Out + b * o_b + h * o_h, rows, columns, o_s, num_rows, HEAD).to(tl.float32)
    grad = _tile(GradOut + b * d_b + h * d_h, rows, columns, d_s, num_rows, HEAD).to(tl.float32)
    mass = tl.load(Mass + at, is_row, 0.0)
    grad_mass = tl.load(GradMass + b * num_rows + rows, is_row, 0.0)
    tl.store(Shift + at, tl.sum(output * grad, 1) + grad_mass * mass, is_row)


@triton.jit
def _score_gradient(
    query, key, value, grad_output, keys,
    first, last, row_bits, key_bits, lse, shift, grad_mass, scale, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return P and dS = P (dO . v + g [counts] - shift), ``[rows, keys]``."""
    score = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
    sees = (first[:, None] <= keys[None, :]) & (keys[None, :] <= last[:, None])
    probability = tl.where(sees, tl.exp2(score - lse[:, None]), 0.0)
    grad = tl.dot(grad_output, tl.trans(value), input_precision=PRECISION)
    counts = (row_bits[:, None] & key_bits[None, :]) != 0
    grad = grad + tl.where(counts, grad_mass[:, None], 0.0) - shift[:, None]
    return probability, probability * grad


@triton.jit
def backward_query(
    Q, K, V, GradOut, First, Last, RowBits, KeyBits, Lse, Shift, GradMass, GradQ,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, d_b, d_h, d_s, gq_b, gq_h, gq_s,
    heads, heads_of_key, num_rows, num_keys, scale, score_scale,
    HEAD: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of rows of one query head."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = tl.program_id(1) % heads
    g = h // heads_of_key
    columns = tl.arange(0, PADDED)
    is_row = rows < num_rows
    first = tl.load(First + b * num_rows + rows, is_row, num_keys)
    last = tl.load(Last + b * num_rows + rows, is_row, -1)
    row_bits = tl.load(RowBits + b * num_rows + rows, is_row, 0)
    grad_mass = tl.load(GradMass + b * num_rows + rows, is_row, 0.0)
    at = tl.program_id(1).to(tl.int64) * num_rows + rows
    lse = tl.load(Lse + at, is_row, 0.0)
    shift = tl.load(Shift + at, is_row, 0.0)
    query = _tile(Q + b * q_b + h * q_h, rows, columns, q_s, num_rows, HEAD)
    grad_output = _tile(GradOut + b * d_b + h * d_h, rows, columns, d_s, num_rows, HEAD)

    grad_query = tl.zeros([ROWS, PADDED], tl.float32)
    start = tl.min(first, 0) // KEYS * KEYS
    stop = tl.max(last, 0) + 1
    for block in range(start, stop, KEYS):
        keys = block + tl.arange(0, KEYS)
        key_bits = tl.load(KeyBits + b * num_keys + keys, keys < num_keys, 0)
        key = _tile(K + b * k_b + g * k_h, keys, columns, k_s, num_keys, HEAD)
        value = _tile(V + b * v_b + g * v_h, keys, columns, v_s, num_keys, HEAD)
        _, grad_score = _score_gradient(
            query, key, value, grad_output, keys,
            first, last, row_bits, key_bits, lse, shift, grad_mass, score_scale, PRECISION,
        )  # fmt: skip
        grad_query = tl.dot(grad_score.to(key.dtype), key, grad_query, input_precision=PRECISION)
    to = GradQ + b * gq_b + h * gq_h
    _store(to, grad_query * scale, rows, columns, gq_s, num_rows, HEAD)


@triton.jit
def backward_key_value(
    Q, K, V, GradOut, First, Last, Start, Stop, RowBits, KeyBits, Lse, Shift, GradMass,
    GradK, GradV,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, d_b, d_h, d_s,
    gk_b, gk_h, gk_s, gv_b, gv_h, gv_s,
    heads, heads_of_key, num_rows, num_keys, scale, score_scale,
    HEAD: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of keys of one key head, over the query heads that share it."""
    keys = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    groups = heads // heads_of_key
    b = (tl.program_id(1) // groups).to(tl.int64)
    g = tl.program_id(1) % groups
    columns = tl.arange(0, PADDED)
    is_key = keys < num_keys
    key_bits = tl.load(KeyBits + b * num_keys + keys, is_key, 0)
    key = _tile(K + b * k_b + g * k_h, keys, columns, k_s, num_keys, HEAD)
    value = _tile(V + b * v_b + g * v_h, keys, columns, v_s, num_keys, HEAD)

    grad_key = tl.zeros([KEYS, PADDED], tl.float32)
    grad_value = tl.zeros([KEYS, PADDED], tl.float32)
    start = tl.min(tl.load(Start + b * num_keys + keys, is_key, num_rows), 0) // ROWS * ROWS
    stop = tl.max(tl.load(Stop + b * num_keys + keys, is_key, 0), 0)
    for h in range(g * heads_of_key, (g + 1) * heads_of_key):
        of_head = (b * heads + h) * num_rows
        for block in range(start, stop, ROWS):
            rows = block + tl.arange(0, ROWS)
            is_row = rows < num_rows
            first = tl.load(First + b * num_rows + rows, is_row, num_keys)
            last = tl.load(Last + b * num_rows + rows, is_row, -1)
            row_bits = tl.load(RowBits + b * num_rows + rows, is_row, 0)
            grad_mass = tl.load(GradMass + b * num_rows + rows, is_row, 0.0)
            lse = tl.load(Lse + of_head + rows, is_row, 0.0)
            shift = tl.load(Shift + of_head + rows, is_row, 0.0)
            query = _tile(Q + b * q_b + h * q_h, rows, columns, q_s, num_rows, HEAD)
            grad_output = _tile(GradOut + b * d_b + h * d_h, rows, columns, d_s, num_rows, HEAD)
            probability, grad_score = _score_gradient(
                query, key, value, grad_output, keys,
                first, last, row_bits, key_bits, lse, shift, grad_mass, score_scale, PRECISION,
            )  # fmt: skip
            grad_value = tl.dot(
                tl.trans(probability.to(grad_output.dtype)), grad_output, grad_value,
                input_precision=PRECISION,
            )  # fmt: skip
            grad_key = tl.dot(
                tl.trans(grad_score.to(query.dtype)), query, grad_key, input_precision=PRECISION
            )
    to = GradK + b * gk_b + g * gk_h
    _store(to, grad_key * scale, keys, columns, gk_s, num_keys, HEAD)
    _store(GradV + b * gv_b + g * gv_h, grad_value, keys, columns, gv_s, num_keys, HEAD)
