// Every instruction set's rounding of floats to the 16-bit types, against the nearest number in doubles.
#pragma once

#include "expected.h"

namespace fastfeed {
namespace {

#if defined(__x86_64__)
template <class T>
__attribute__((target("avx2,fma,f16c"))) void round_avx2(const float* values, uint16_t* bits) {
    avx2::round_block(values, T(), bits, false);
}
template <class T>
__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))) void round_avx512(
    const float* values, uint16_t* bits) {
    avx512::round_block(values, T(), bits, false);
}
template <class T>
__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,prefer-vector-width=512")))
void round_avx512_bf16(const float* values, uint16_t* bits) {
    avx512_bf16::round_block(values, T(), bits, false);
}
#endif

inline bool is_subnormal(float value) { return std::fpclassify(value) == FP_SUBNORMAL; }

// Rounds a block in each instruction set and compares it with `nearest`.
template <class T>
bool test_rounding(const float* values, Output output) {
    uint16_t got[5][BLOCK];
    int sets = 0;
    for (int i = 0; i < BLOCK; ++i) got[sets][i] = T::round(values[i]);
    baseline::round_block(values, T(), got[++sets], false);
#if defined(__x86_64__)
    if (simd() >= Simd::avx2) round_avx2<T>(values, got[++sets]);
    if (simd() >= Simd::avx512) round_avx512<T>(values, got[++sets]);
    const bool subnormal = std::any_of(values, values + BLOCK, [](float value) { return is_subnormal(value); });
    if (simd() >= Simd::avx512_bf16 && (!subnormal || output != Output::bfloat16)) {
        round_avx512_bf16<T>(values, got[++sets]);
    }
#endif
    for (; sets >= 0; --sets) {
        for (int i = 0; i < BLOCK; ++i) {
            const uint32_t expected = rounded(values[i], output);
            if (got[sets][i] == expected) continue;
            std::printf("rounding %a, way %d: %#x instead of %#x\n", values[i], sets, got[sets][i], expected);
            return false;
        }
    }
    return true;
}

// Numbers around every number of the 16-bit types, and around the middle between any two; and a sample of all floats.
inline bool test_roundings() {
    alignas(64) float block[BLOCK];
    int filled = 0;
    bool right = true;
    const auto test = [&](uint32_t bits) {
        block[filled] = bits_to_float(bits);
        if (std::isnan(block[filled])) return;
        if (++filled < BLOCK) return;
        filled = 0;
        right = right && test_rounding<Float16>(block, Output::float16) &&
                test_rounding<BFloat16>(block, Output::bfloat16);
    };
    for (uint32_t sign : {0u, 1u << 31}) {
        for (uint32_t half = 0; half <= 0x7c00; ++half) {
            // Twice the half, so that the middles have a place too.
            for (uint32_t middle = 0; middle < 2; ++middle) {
                const int exponent = std::max<int>(half >> 10, 1);
                const double digits = 2 * (half >> 10 == 0 ? half : (half & 0x3ff) + 0x400) + middle;
                const uint32_t bits = float_to_bits(static_cast<float>(std::ldexp(digits, exponent - 26)));
                for (int step = -2; step <= 2; ++step) test(sign | ((bits + static_cast<uint32_t>(step)) & INT_MAX));
            }
        }
    }
    for (uint32_t high = 0; high < 0x10000; ++high) {
        for (uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) test(high << 16 | low);
    }
    for (uint64_t bits = 0; bits >> 32 == 0; bits += 65521) test(static_cast<uint32_t>(bits));
    for (int i = 0; i < BLOCK; ++i) test(0);  // the last block is full
    return right;
}

}  // namespace
}  // namespace fastfeed
