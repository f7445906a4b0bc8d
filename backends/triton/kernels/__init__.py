"""Triton kernels of quantized linears, as operators of torch; nothing here knows ONNX, and importing needs no card.

With TRITON_INTERPRET=1, set before triton is first imported, every operator runs on CPU tensors by Triton's
interpreter, slowly and to the same numbers. Importing one of the modules registers its operators.

M rows (x is [..., K]: leading axes of any number are rows, none of them too), K inputs, N outputs, g the group size,
G = ceil(K / g). x is float16, bfloat16 or float32, on one device with all else, and may be strided; all other tensors
are contiguous. y is [..., N] in the dtype of x; sums are float32 (int32 where both sides are integers), rounded once.
An empty M gives an empty y. `bias` is float [N] of any of the three dtypes, or None, added in float32.

Weights in groups (packing.py, grouped.py): `pack(integers uint8 or int8 [K, N], bits) -> Packed(words, plane)`; bits 2,
3, 4 or 8; signed integers are stored plus 2^(bits-1), so that zero points of signed weights are shifted by as much too.
`scale` is float16, bfloat16 or float32 [G, N]; `zero_point` uint8 [G, N], or None: 2^(bits-1).

    qcompile::grouped_gemv(x, words int32 [W, N], scale, zero_point?, bias?, int bits, int group_size, int plane) -> y
        for at most 8 rows (more are legal, and slow)
    qcompile::grouped_gemm(the same) -> y
        tensor cores; any number of rows
    qcompile::grouped_dequantize(words, scale, zero_point?, int bits, int group_size, int plane, int inputs,
                                 ScalarType dtype) -> [K, N]
        where two kernels are faster than one, and for gradients

NF4 and any other codebook of 16 levels (nf4.py): `words`, `plane` = pack(indices, 4).

    qcompile::nf4_gemv(x, words, codebook float32 [16], scale float [G, N], scale_indices?, levels?, offset?, bias?,
                       int group_size, int plane) -> y
        double quantization: scale_indices uint8 [G, N], levels float32 [256], scale float32 [ceil(G*N/256)], offset
        float32 []; scales are levels[scale_indices] * scale[block] + offset, and blocks of 256 count output by output,
        that is in the order of memory of [N, G]
    qcompile::nf4_gemm(the same) -> y
    qcompile::nf4_dequantize(words, codebook, scale, scale_indices?, levels?, offset?, int group_size, int plane,
                             int inputs, ScalarType dtype) -> [K, N]

Int8 (tokens.py, norms.py, gated.py, int8_gemm.py, llm_int8.py). `weight` is int8 [N, K]: transposed, as the int8 tensor
cores read it. `weight_scale` is float32 [N]. `activation` is "none", "gelu" (the error function), "gelu_tanh", "relu"
or "silu". `inliers` is bool [K] or None: what is False counts as 0 in q, and not for the scale.

    qcompile::quantize_tokens(x, inliers?) -> (q int8 [..., K], scale float32 [...])
        scale = max|x of the row| / 127 (1 where that is 0), q = round half to even (x * (1 / scale))
    qcompile::rms_norm_quantize(x, residual?, weight float [K], inliers?, float epsilon) -> (q, scale, sum)
    qcompile::layer_norm_quantize(x, residual?, weight, bias?, inliers?, float epsilon) -> (q, scale, sum)
        over the last axis of sum = x + residual, which is [..., K] in the dtype of x, rounded before the norm reads it,
        and of no elements without a residual; the normalized row stays in float32 until it is quantized
    qcompile::gated_quantize(gate, up, str activation) -> (q, scale)
        of activation(gate) * up, in float32 until it is quantized
    qcompile::quantize_static(x, scale float32 []) -> q int8 [..., K]
        symmetric; saturates. The zero point of unsigned static activations: subtract 128 from both, then add
        -scale * (zero_point - 128) * weight_scale * (sum of weight over K) to the bias
    qcompile::int8_gemm(q, scale float32 [...] or [], weight, weight_scale, bias?, str activation,
                        ScalarType dtype) -> y [..., N]
        scale by token, or one for all
    qcompile::int8_linear(x, weight, weight_scale, bias?, str activation) -> y
        quantize_tokens, then int8_gemm; differentiable: rounding passes the gradient on as it is
    qcompile::int8_linear_static(x, scale float32 [], weight, weight_scale, bias?, str activation) -> y
        the same with quantize_static; no gradient flows to what saturates
    qcompile::llm_int8_gemm(q, scale [...], weight, weight_scale, x, outliers int32 [O], outlier_weight [N, O]
                            in the dtype of x, bias?) -> y
        int8 product + x[:, outliers] @ outlier_weight^T, one launch; q is of the inliers, O may be 0
    qcompile::llm_int8_linear(x, weight, weight_scale, inliers, outliers, outlier_weight, bias?) -> y
        quantize_tokens(x, inliers), then llm_int8_gemm; differentiable

Floats between products (norms.py, gated.py): operators that torch would run one behind the other, differentiable with
respect to their first two arguments. `residual` and `up` are of the shape and dtype of the argument in front of them.

    qcompile::add_rms_norm(x, residual, weight float [K], float epsilon) -> (y, sum)
    qcompile::add_layer_norm(x, residual, weight, bias?, float epsilon) -> (y, sum)
        y [..., K] in the dtype of x; sum as above
    qcompile::gated(gate, up, str activation) -> y
        activation(gate) * up, for any activation but "none"

FP8 (fp8.py), e4m3fn, for cards of compute capability 8.9 and more (UnsupportedError elsewhere) and the interpreter:

    qcompile::fp8_quantize_tokens(x) -> (q float8_e4m3fn [..., K], scale float32 [...])
        scale = max|x of the row| / 448 (1 where that is 0)
    qcompile::fp8_gemm(q, scale, weight float8_e4m3fn [N, K], weight_scale float32 [N], bias?, ScalarType dtype) -> y
    qcompile::fp8_linear(x, weight, weight_scale, bias?) -> y
        differentiable

Linears of float x are differentiable with respect to x alone: dx = dy @ W^T, W the dequantized weight in the dtype
of x. Shapes and dtypes that do not fit raise InputError, with what was found.
"""
