// Which of the instruction sets that code is compiled for more than once this processor has.
#pragma once

namespace fastfeed {

// Each has all that those before it have; avx512_vnni has VBMI too, which its processors have.
enum class Simd { baseline, avx2, avx512, avx512_vnni, avx512_bf16 };

inline Simd simd() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) {
        return Simd::baseline;
    }
    if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512dq")) {
        return Simd::avx2;
    }
    if (!__builtin_cpu_supports("avx512vbmi") || !__builtin_cpu_supports("avx512vnni")) return Simd::avx512;
    return __builtin_cpu_supports("avx512bf16") ? Simd::avx512_bf16 : Simd::avx512_vnni;
#else
    return Simd::baseline;
#endif
}

}  // namespace fastfeed
