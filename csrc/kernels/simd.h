// The instruction set that this translation unit is built for. The build compiles each <operation>_simd.cpp once for
// each, with its flags and one TERNGRAD_ISA_<NAME>.
#pragma once

#if defined(TERNGRAD_ISA_AVX2)
#include "simd_avx2.h"
#define TERNGRAD_ISA avx2
#elif defined(TERNGRAD_ISA_AVX512)
#include "simd_avx512.h"
#define TERNGRAD_ISA avx512
#else
#error "no TERNGRAD_ISA_<NAME> is defined"
#endif
