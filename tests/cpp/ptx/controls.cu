// That the runner finds what it is there to find: kernels with a fault each, which must stop the program and say so,
// and their sound twins, which must not. Then instructions by themselves, with results that NVIDIA's description of PTX
// gives for them.
//
//   test_ptx
#include <cuda_runtime.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

constexpr unsigned kAll = 0xffffffffu;

// What a kernel is given: memory of 4 KB that the host has written (zeros), and some that nobody has.
struct Given {
  unsigned* written;
  unsigned* unwritten;
};
using Kernel = void (*)(Given);

// ---- shared memory

template <bool Sound>
__global__ void read_neighbour_of_block(Given given) {
  __shared__ unsigned values[64];
  values[threadIdx.x] = 0;
  __syncthreads();
  values[threadIdx.x] = threadIdx.x;
  if (Sound) __syncthreads();
  given.written[threadIdx.x] = values[63 - threadIdx.x];
}

template <bool Sound>
__global__ void read_neighbour_of_warp(Given given) {
  __shared__ unsigned char values[64];
  values[threadIdx.x] = 0;
  __syncwarp();
  values[threadIdx.x] = static_cast<unsigned char>(threadIdx.x);
  if (Sound) __syncwarp();
  given.written[threadIdx.x] = values[threadIdx.x ^ 1u];
}

// A barrier of the warp orders nobody else.
__global__ void read_other_warp(Given given) {
  __shared__ unsigned values[64];
  values[threadIdx.x] = 0;
  __syncthreads();
  values[threadIdx.x] = threadIdx.x;
  __syncwarp();
  given.written[threadIdx.x] = values[threadIdx.x ^ 32u];
}

// The next round's writes come before the last one's reads.
template <bool Sound>
__global__ void write_again(Given given) {
  __shared__ unsigned values[64];
  unsigned sum = 0;
  for (unsigned round = 0; round < 3; ++round) {
    values[threadIdx.x] = threadIdx.x + round;
    __syncthreads();
    sum += values[63 - threadIdx.x];
    if (Sound) __syncthreads();
  }
  given.written[threadIdx.x] = sum;
}

template <bool Sound>
__global__ void read_unwritten_shared(Given given) {
  __shared__ unsigned values[64];
  if (Sound || threadIdx.x != 40) values[threadIdx.x] = threadIdx.x;
  __syncthreads();
  given.written[threadIdx.x] = values[63 - threadIdx.x];
}

template <bool Sound>
__global__ void pass_end_of_shared(Given given) {
  __shared__ unsigned values[64];
  __shared__ unsigned others[64];
  values[threadIdx.x] = others[threadIdx.x] = given.written[0];
  __syncthreads();
  given.written[64 + threadIdx.x] = values[threadIdx.x + (Sound ? 0 : 1)] + others[threadIdx.x];
}

// ---- global memory

template <bool Sound>
__global__ void read_unwritten_global(Given given) {
  if (Sound) given.unwritten[threadIdx.x] = 1;
  given.written[threadIdx.x] = given.unwritten[threadIdx.x];
}

// Bytes of one word count by themselves.
template <bool Sound>
__global__ void write_byte_of_others(Given given) {
  auto* bytes = reinterpret_cast<unsigned char*>(given.written);
  bytes[blockIdx.x * 64 + threadIdx.x] = 1;
  if (!Sound && threadIdx.x == 0) bytes[blockIdx.x ^ 1u] = 2;
}

template <bool Sound>
__global__ void shift_in_place(Given given) {
  const unsigned value = given.written[threadIdx.x + 1];
  if (Sound) __syncthreads();
  given.written[threadIdx.x] = value + 1;
}

// Writers of one value, which is allowed unless TERNGRAD_PTX_STRICT is set, and of several.
template <bool Sound>
__global__ void write_all_one(Given given) {
  given.written[0] = Sound ? 7 : threadIdx.x;
}

enum class Fences { both, before, after, none };

// The last block to arrive reads what all have written.
template <Fences Where>
__global__ void count_arrivals(Given given) {
  __shared__ bool is_last;
  given.written[64 + blockIdx.x * 64 + threadIdx.x] = threadIdx.x;
  if (Where == Fences::both || Where == Fences::before) __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(given.written, 1u) == gridDim.x - 1;
    if (Where == Fences::both || Where == Fences::after) __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  unsigned sum = 0;
  for (unsigned i = threadIdx.x; i < 64 * gridDim.x; i += 64) sum += given.written[64 + i];
  given.written[512 + threadIdx.x] = sum;
}

// Without barriers: a flag that the second block waits for.
template <Fences Where>
__global__ void wait_for_flag(Given given) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) {
    given.written[1] = 5;
    if (Where == Fences::both || Where == Fences::before) __threadfence();
    atomicExch(given.written, 1u);
  } else if (blockIdx.x == 1) {
    while (*static_cast<volatile unsigned*>(given.written) == 0) __nanosleep(100);
    if (Where == Fences::both || Where == Fences::after) __threadfence();
    given.written[2] = given.written[1];
  }
}

__global__ void wait_for_nobody(Given given) {
  while (*static_cast<volatile unsigned*>(given.written) == 0) __nanosleep(100);
}

// ---- addresses

template <bool Sound>
__global__ void load_vector(Given given) {
  const uint4 four = *reinterpret_cast<const uint4*>(given.written + (Sound ? 4 : 2));
  given.written[512 + threadIdx.x] = four.x + four.w;
}

template <bool Sound>
__global__ void take_shared_for_global(Given given) {
  __shared__ unsigned value;
  if (threadIdx.x == 0) value = 1;
  __syncthreads();
  unsigned found = 0;
  if (Sound) {
    asm volatile("ld.u32 %0, [%1];" : "=r"(found) : "l"(&value));
  } else {
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(found) : "l"(&value));
  }
  given.written[threadIdx.x] = found;
}

__global__ void load_null(Given given) {
  unsigned* const* none = reinterpret_cast<unsigned* const*>(given.written);
  given.written[4] = *none[0];
}

__global__ void read_local_of_others(Given given) {
  __shared__ unsigned* address;
  volatile unsigned own = threadIdx.x;
  if (threadIdx.x == 5) address = const_cast<unsigned*>(&own);
  __syncthreads();
  given.written[threadIdx.x] = *static_cast<volatile unsigned*>(address) + own;
}

// ---- meetings

template <bool Sound>
__global__ void leave_before_barrier(Given given) {
  __shared__ unsigned values[64];
  if (!Sound && threadIdx.x == given.written[0] + 40) return;
  values[threadIdx.x] = 1;
  __syncthreads();
  given.written[threadIdx.x] = values[63 - threadIdx.x];
}

__global__ void meet_at_two_barriers(Given given) {
  if (threadIdx.x < 32 + given.written[0]) {
    asm volatile("bar.sync 0;\n\tst.global.u32 [%0], 1;" ::"l"(given.written + 1) : "memory");
  } else {
    asm volatile("bar.sync 0;\n\tst.global.u32 [%0], 2;" ::"l"(given.written + 2) : "memory");
  }
}

template <bool Sound>
__global__ void shuffle_in_part_of_warp(Given given) {
  unsigned value = threadIdx.x;
  if (Sound || threadIdx.x % 32 < 16 + given.written[0]) value = __shfl_down_sync(kAll, value, 1);
  given.written[threadIdx.x + 1] = value;
}

// ---- arithmetic

__global__ void divide_by_zero(Given given) { given.written[1] = 5u / given.written[threadIdx.x]; }

__global__ void reach_trap(Given given) {
  if (given.written[0] == 0) __trap();
}

// ---- instructions, of operands in registers of 32 (r) or 64 bits (l)

#define COMPARED(text) "{ .reg .pred %%q; setp." text " %%q, %1, %2; selp.u32 %0, 1, 0, %%q; }"
#define INSTRUCTIONS(OP)                                                                      \
  OP(shf_l_wrap, r, r, "shf.l.wrap.b32 %0, %1, %2, %3;")                                      \
  OP(shf_l_clamp, r, r, "shf.l.clamp.b32 %0, %1, %2, %3;")                                    \
  OP(shf_r_wrap, r, r, "shf.r.wrap.b32 %0, %1, %2, %3;")                                      \
  OP(shf_r_clamp, r, r, "shf.r.clamp.b32 %0, %1, %2, %3;")                                    \
  OP(shl_b32, r, r, "shl.b32 %0, %1, %2;")                                                    \
  OP(shr_s32, r, r, "shr.s32 %0, %1, %2;")                                                    \
  OP(shr_u32, r, r, "shr.u32 %0, %1, %2;")                                                    \
  OP(mul_hi_s32, r, r, "mul.hi.s32 %0, %1, %2;")                                              \
  OP(mul_hi_u32, r, r, "mul.hi.u32 %0, %1, %2;")                                              \
  OP(mul_hi_s64, l, l, "mul.hi.s64 %0, %1, %2;")                                              \
  OP(mul_hi_u64, l, l, "mul.hi.u64 %0, %1, %2;")                                              \
  OP(mul_wide_s32, l, r, "mul.wide.s32 %0, %1, %2;")                                          \
  OP(mul_wide_u32, l, r, "mul.wide.u32 %0, %1, %2;")                                          \
  OP(mad_hi_sat_s32, r, r, "mad.hi.sat.s32 %0, %1, %2, %3;")                                  \
  OP(add_sat_s32, r, r, "add.sat.s32 %0, %1, %2;")                                            \
  OP(sub_sat_s32, r, r, "sub.sat.s32 %0, %1, %2;")                                            \
  OP(div_s32, r, r, "div.s32 %0, %1, %2;")                                                    \
  OP(rem_s32, r, r, "rem.s32 %0, %1, %2;")                                                    \
  OP(bfe_u32, r, r, "bfe.u32 %0, %1, %2, %3;")                                                \
  OP(bfe_s32, r, r, "bfe.s32 %0, %1, %2, %3;")                                                \
  OP(bfi_b32, r, r, "bfi.b32 %0, %1, %2, %3, 8;")                                             \
  OP(bfind_u32, r, r, "bfind.u32 %0, %1;")                                                    \
  OP(bfind_s32, r, r, "bfind.s32 %0, %1;")                                                    \
  OP(bfind_shiftamt, r, r, "bfind.shiftamt.u32 %0, %1;")                                      \
  OP(clz_b32, r, r, "clz.b32 %0, %1;")                                                        \
  OP(brev_b32, r, r, "brev.b32 %0, %1;")                                                      \
  OP(popc_b64, r, l, "popc.b64 %0, %1;")                                                      \
  OP(prmt_b32, r, r, "prmt.b32 %0, %1, %2, %3;")                                              \
  OP(lop3_xor, r, r, "lop3.b32 %0, %1, %2, %3, 0x96;")                                        \
  OP(lop3_choose, r, r, "lop3.b32 %0, %1, %2, %3, 0xca;")                                     \
  OP(min_s16x2, r, r, "min.s16x2 %0, %1, %2;")                                                \
  OP(min_u16x2, r, r, "min.u16x2 %0, %1, %2;")                                                \
  OP(cvt_rzi_s32_f32, r, r, "cvt.rzi.s32.f32 %0, %1;")                                        \
  OP(cvt_rzi_u32_f32, r, r, "cvt.rzi.u32.f32 %0, %1;")                                        \
  OP(cvt_rni_s32_f32, r, r, "cvt.rni.s32.f32 %0, %1;")                                        \
  OP(cvt_rzi_u8_f32, r, r, "cvt.rzi.u8.f32 %0, %1;")                                          \
  OP(cvt_rzi_s32_f64, r, l, "cvt.rzi.s32.f64 %0, %1;")                                        \
  OP(cvt_rzi_s64_f64, l, l, "cvt.rzi.s64.f64 %0, %1;")                                        \
  OP(cvt_sat_s8_s32, r, r, "cvt.sat.s8.s32 %0, %1;")                                          \
  OP(cvt_s32_s8, r, r, "cvt.s32.s8 %0, %1;")                                                  \
  OP(cvt_rn_f32_f64, r, l, "cvt.rn.f32.f64 %0, %1;")                                          \
  OP(cvt_f64_f32, l, r, "cvt.f64.f32 %0, %1;")                                                \
  OP(cvt_f32_f16, r, r, "{ .reg .b16 %%h; cvt.u16.u32 %%h, %1; cvt.f32.f16 %0, %%h; }")       \
  OP(cvt_rn_f16_f32, r, r, "{ .reg .b16 %%h; cvt.rn.f16.f32 %%h, %1; cvt.u32.u16 %0, %%h; }") \
  OP(min_f32, r, r, "min.f32 %0, %1, %2;")                                                    \
  OP(max_f32, r, r, "max.f32 %0, %1, %2;")                                                    \
  OP(abs_f32, r, r, "abs.f32 %0, %1;")                                                        \
  OP(add_f32, r, r, "add.rn.f32 %0, %1, %2;")                                                 \
  OP(add_sat_f32, r, r, "add.rn.sat.f32 %0, %1, %2;")                                         \
  OP(mul_f32, r, r, "mul.rn.f32 %0, %1, %2;")                                                 \
  OP(fma_f32, r, r, "fma.rn.f32 %0, %1, %2, %3;")                                             \
  OP(sqrt_f64, l, l, "sqrt.rn.f64 %0, %1;")                                                   \
  OP(div_f64, l, l, "div.rn.f64 %0, %1, %2;")                                                 \
  OP(setp_ltu, r, r, COMPARED("ltu.f32"))                                                     \
  OP(setp_lt, r, r, COMPARED("lt.f32"))                                                       \
  OP(setp_ne, r, r, COMPARED("ne.f32"))                                                       \
  OP(setp_neu, r, r, COMPARED("neu.f32"))                                                     \
  OP(setp_num, r, r, COMPARED("num.f32"))                                                     \
  OP(setp_lt_s32, r, r, COMPARED("lt.s32"))                                                   \
  OP(setp_lt_u32, r, r, COMPARED("lt.u32"))

#define NAMED(name, to, from, text) name,
enum Instruction { INSTRUCTIONS(NAMED) };
#undef NAMED

using r = unsigned;
using l = unsigned long long;

__global__ void run_instruction(Instruction instruction, l a, l b, l c, l* result) {
  if (threadIdx.x != 0) return;
  switch (instruction) {
#define RUN(name, to, from, text)                                                         \
  case name: {                                                                            \
    to found;                                                                             \
    asm volatile(text : "=" #to(found) : #from((from)a), #from((from)b), #from((from)c)); \
    *result = found;                                                                      \
    break;                                                                                \
  }
    INSTRUCTIONS(RUN)
#undef RUN
  }
}

struct Case {
  Instruction instruction;
  l a, b, c;
  l result;
};

constexpr l kNan = 0x7fffffff;
constexpr l kNan64 = 0x7fffffffffffffff;
constexpr l kSomeNan = 0xffc00001;  // with a payload and a sign
constexpr l kSomeNan64 = 0xfff8000000000001;
constexpr l kOne = 0x3f800000;
constexpr l kInfinite = 0x7f800000;

const Case kCases[] = {
    {shf_l_wrap, 0x11112222, 0x33334444, 8, 0x33444411},
    {shf_l_wrap, 0x11112222, 0x33334444, 40, 0x33444411},
    {shf_l_clamp, 0x11112222, 0x33334444, 40, 0x11112222},
    {shf_r_wrap, 0x11112222, 0x33334444, 8, 0x44111122},
    {shf_r_wrap, 0x11112222, 0x33334444, 32, 0x11112222},
    {shf_r_clamp, 0x11112222, 0x33334444, 33, 0x33334444},
    {shl_b32, 1, 31, 0, 0x80000000},
    {shl_b32, 1, 32, 0, 0},
    {shl_b32, 1, 0xffffffff, 0, 0},
    {shr_s32, 0x80000000, 40, 0, 0xffffffff},
    {shr_s32, 0x80000000, 4, 0, 0xf8000000},
    {shr_u32, 0x80000000, 40, 0, 0},
    {mul_hi_s32, 0xfffffffe, 3, 0, 0xffffffff},
    {mul_hi_u32, 0xffffffff, 0xffffffff, 0, 0xfffffffe},
    {mul_hi_s64, ~l{0}, 2, 0, ~l{0}},
    {mul_hi_u64, ~l{0}, 2, 0, 1},
    {mul_wide_s32, 0xffffffff, 2, 0, 0xfffffffffffffffe},
    {mul_wide_u32, 0xffffffff, 2, 0, 0x1fffffffe},
    {mad_hi_sat_s32, 0x7fffffff, 4, 0x7fffffff, 0x7fffffff},
    {mad_hi_sat_s32, 0x7fffffff, 4, 5, 6},
    {add_sat_s32, 0x7fffffff, 1, 0, 0x7fffffff},
    {sub_sat_s32, 0x80000000, 1, 0, 0x80000000},
    {div_s32, 0x80000000, 0xffffffff, 0, 0x80000000},
    {rem_s32, 0xfffffff9, 3, 0, 0xffffffff},
    {bfe_u32, 0x12345678, 8, 8, 0x56},
    {bfe_u32, 0x12345678, 8, 0, 0},
    {bfe_s32, 0x0000f000, 8, 8, 0xfffffff0},
    {bfe_s32, 0x80000000, 28, 8, 0xfffffff8},
    {bfi_b32, 0xab, 0x11111111, 8, 0x1111ab11},
    {bfi_b32, 0xab, 0x11111111, 28, 0xb1111111},
    {bfi_b32, 0xab, 0x11111111, 32, 0x11111111},
    {bfind_u32, 0x00010000, 0, 0, 16},
    {bfind_u32, 0, 0, 0, 0xffffffff},
    {bfind_s32, 0xfffffffd, 0, 0, 1},
    {bfind_s32, 0xffffffff, 0, 0, 0xffffffff},
    {bfind_shiftamt, 0x00010000, 0, 0, 15},
    {clz_b32, 1, 0, 0, 31},
    {clz_b32, 0, 0, 0, 32},
    {brev_b32, 3, 0, 0, 0xc0000000},
    {popc_b64, 0xff00000000000001, 0, 0, 9},
    {prmt_b32, 0x33221100, 0x77665544, 0x7531, 0x77553311},
    {prmt_b32, 0x00007f80, 0, 0x2298, 0x000000ff},
    {lop3_xor, 0xf0f0f0f0, 0xcccccccc, 0xaaaaaaaa, 0x96969696},
    {lop3_choose, 0xf0f0f0f0, 0xcccccccc, 0xaaaaaaaa, 0xcacacaca},
    {min_s16x2, 0xffff0001, 0x00010002, 0, 0xffff0001},
    {min_u16x2, 0xffff0001, 0x00010002, 0, 0x00010001},
    {cvt_rzi_s32_f32, 0x501502f9, 0, 0, 0x7fffffff},
    {cvt_rzi_s32_f32, 0xd01502f9, 0, 0, 0x80000000},
    {cvt_rzi_s32_f32, 0xbff33333, 0, 0, 0xffffffff},
    {cvt_rzi_s32_f32, kSomeNan, 0, 0, 0},
    {cvt_rzi_u32_f32, 0xbf800000, 0, 0, 0},
    {cvt_rzi_u32_f32, 0x4f6e6b28, 0, 0, 0xee6b2800},
    {cvt_rzi_u32_f32, 0x4f800000, 0, 0, 0xffffffff},
    {cvt_rzi_u32_f32, kSomeNan, 0, 0, 0},
    {cvt_rni_s32_f32, 0x40200000, 0, 0, 2},
    {cvt_rni_s32_f32, 0x40600000, 0, 0, 4},
    {cvt_rzi_u8_f32, 0x43960000, 0, 0, 255},
    {cvt_rzi_s32_f64, kSomeNan64, 0, 0, 0x80000000},
    {cvt_rzi_s64_f64, kSomeNan64, 0, 0, 0x8000000000000000},
    {cvt_rzi_s64_f64, 0x43e0000000000000, 0, 0, 0x7fffffffffffffff},
    {cvt_sat_s8_s32, 200, 0, 0, 127},
    {cvt_sat_s8_s32, 0xffffff38, 0, 0, 0xffffff80},
    {cvt_s32_s8, 0x180, 0, 0, 0xffffff80},
    {cvt_rn_f32_f64, kSomeNan64, 0, 0, kNan},
    {cvt_rn_f32_f64, 0x7e37e43c8800759c, 0, 0, kInfinite},
    {cvt_rn_f32_f64, 0x36a0000000000000, 0, 0, 1},
    {cvt_rn_f32_f64, 0x3690000000000000, 0, 0, 0},
    {cvt_rn_f32_f64, 0x3690000000000001, 0, 0, 1},
    {cvt_f64_f32, kSomeNan, 0, 0, kNan64},
    {cvt_f64_f32, 1, 0, 0, 0x36a0000000000000},
    {cvt_f32_f16, 0x0001, 0, 0, 0x33800000},
    {cvt_f32_f16, 0x8400, 0, 0, 0xb8800000},
    {cvt_f32_f16, 0x3555, 0, 0, 0x3eaaa000},
    {cvt_f32_f16, 0x7c00, 0, 0, kInfinite},
    {cvt_f32_f16, 0xfe01, 0, 0, kNan},
    {cvt_rn_f16_f32, 0x477ff000, 0, 0, 0x7c00},
    {cvt_rn_f16_f32, 0x477fef00, 0, 0, 0x7bff},
    {cvt_rn_f16_f32, 0x33000000, 0, 0, 0},
    {cvt_rn_f16_f32, 0xb3400000, 0, 0, 0x8001},
    {cvt_rn_f16_f32, 0x45001000, 0, 0, 0x6800},
    {cvt_rn_f16_f32, 0x45003000, 0, 0, 0x6802},
    {cvt_rn_f16_f32, 0x387fffff, 0, 0, 0x0400},
    {cvt_rn_f16_f32, kSomeNan, 0, 0, 0x7fff},
    {min_f32, 0x80000000, 0, 0, 0x80000000},
    {min_f32, 0, 0x80000000, 0, 0x80000000},
    {max_f32, 0x80000000, 0, 0, 0},
    {max_f32, 0, 0x80000000, 0, 0},
    {min_f32, kSomeNan, kOne, 0, kOne},
    {max_f32, kOne, kSomeNan, 0, kOne},
    {max_f32, kSomeNan, kSomeNan, 0, kNan},
    {abs_f32, kSomeNan, 0, 0, 0x7fc00001},
    {add_f32, kInfinite, 0xff800000, 0, kNan},
    {add_f32, kSomeNan, kOne, 0, kNan},
    {add_sat_f32, 0x3f400000, 0x3f400000, 0, kOne},
    {add_sat_f32, kSomeNan, kOne, 0, 0},
    {mul_f32, 0x00800000, 0x3f000000, 0, 0x00400000},
    {fma_f32, 0x3f800800, 0x3f800800, 0xbf801000, 0x33800000},
    {sqrt_f64, 0x4000000000000000, 0, 0, 0x3ff6a09e667f3bcd},
    {sqrt_f64, 0xbff0000000000000, 0, 0, kNan64},
    {div_f64, 0x3ff0000000000000, 0x4008000000000000, 0, 0x3fd5555555555555},
    {setp_ltu, kSomeNan, kOne, 0, 1},
    {setp_lt, kSomeNan, kOne, 0, 0},
    {setp_ne, kSomeNan, kOne, 0, 0},
    {setp_ne, 0, kOne, 0, 1},
    {setp_neu, kSomeNan, kSomeNan, 0, 1},
    {setp_neu, 0, 0x80000000, 0, 0},
    {setp_num, kOne, kSomeNan, 0, 0},
    {setp_lt_s32, 0xffffffff, 0, 0, 1},
    {setp_lt_u32, 0xffffffff, 0, 0, 0},
};

// ---- running them

void launch(Kernel kernel) {
  Given given{};
  void* memory[2];
  for (void*& each : memory) cudaMalloc(&each, 4096);
  cudaMemsetAsync(memory[0], 0, 4096, nullptr);
  given.written = static_cast<unsigned*>(memory[0]);
  given.unwritten = static_cast<unsigned*>(memory[1]);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(3);
  config.blockDim = dim3(64);
  if (cudaLaunchKernelEx(&config, kernel, given) != cudaSuccess) std::fprintf(stderr, "it was not launched\n");
  for (void* each : memory) cudaFree(each);
}

int checks = 0;
int failures = 0;

// Runs it in a process of its own; `expected` is a part of what that says, or null if it ends well.
void check(const char* name, Kernel kernel, const char* expected, const char* variable = nullptr,
           const char* value = "1") {
  int ends[2];
  if (pipe(ends) != 0) std::abort();
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    if (variable) setenv(variable, value, 1);
    launch(kernel);
    _exit(0);
  }
  close(ends[1]);
  std::string said;
  char part[512];
  for (ssize_t got; (got = read(ends[0], part, sizeof part)) > 0;) said.append(part, static_cast<size_t>(got));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  ++checks;
  const bool ended_well = WIFEXITED(status) && WEXITSTATUS(status) == 0 && said.empty();
  const bool stopped = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
  if (expected ? stopped && said.find(expected) != std::string::npos : ended_well) return;
  ++failures;
  std::printf("%s: expected %s, it %s and said: %s\n", name, expected ? expected : "nothing",
              stopped      ? "stopped"
              : ended_well ? "ended"
                           : "failed",
              said.c_str());
}

// The faults must be found, and the sound twins be found sound, whatever order blocks run in.
void check_all(const char* order) {
  const char* const kReads = "a race: reads what another thread has written";
  const char* const kRewrites = "a race: writes what another thread has written";
  const auto expect = [&](const char* name, Kernel kernel, const char* expected) {
    check(name, kernel, expected, "TERNGRAD_EMULATED_ORDER", order);
  };
#define SOUND(kernel) expect(#kernel, kernel, nullptr)
#define FAULT(kernel, expected) expect(#kernel, kernel, expected)
  SOUND(read_neighbour_of_block<true>);
  FAULT(read_neighbour_of_block<false>, "race");
  SOUND(read_neighbour_of_warp<true>);
  FAULT(read_neighbour_of_warp<false>, "race");
  FAULT(read_other_warp, "race");
  SOUND(write_again<true>);
  FAULT(write_again<false>, "race");
  SOUND(read_unwritten_shared<true>);
  FAULT(read_unwritten_shared<false>, "reads shared memory that the block has not written");
  SOUND(pass_end_of_shared<true>);
  FAULT(pass_end_of_shared<false>, "outside of shared variables");
  SOUND(read_unwritten_global<true>);
  FAULT(read_unwritten_global<false>, "reads global memory that nobody has written");
  SOUND(write_byte_of_others<true>);
  FAULT(write_byte_of_others<false>, kRewrites);
  FAULT(shift_in_place<false>, "race");
  SOUND(write_all_one<true>);
  FAULT(write_all_one<false>, kRewrites);
  SOUND(count_arrivals<Fences::both>);
  FAULT(count_arrivals<Fences::before>, kReads);
  FAULT(count_arrivals<Fences::after>, kReads);
  FAULT(count_arrivals<Fences::none>, kReads);
  SOUND(wait_for_flag<Fences::both>);
  FAULT(wait_for_flag<Fences::before>, kReads);
  FAULT(wait_for_flag<Fences::after>, kReads);
  FAULT(wait_for_flag<Fences::none>, kReads);
  FAULT(wait_for_nobody, "waits for");
  SOUND(load_vector<true>);
  FAULT(load_vector<false>, "a misaligned address");
  SOUND(take_shared_for_global<true>);
  FAULT(take_shared_for_global<false>, "shared memory taken for global");
  FAULT(load_null, "a null address");
  FAULT(read_local_of_others, "not the thread's local memory");
  SOUND(leave_before_barrier<true>);
  FAULT(leave_before_barrier<false>, "that not all threads of the block reach");
  FAULT(meet_at_two_barriers, "different __syncthreads");
  SOUND(shuffle_in_part_of_warp<true>);
  FAULT(shuffle_in_part_of_warp<false>, "that not all lanes of the warp reach");
  FAULT(divide_by_zero, "division by zero");
  FAULT(reach_trap, "a trap");
#undef SOUND
#undef FAULT
}

void check_instructions() {
  void* memory = nullptr;
  cudaMalloc(&memory, sizeof(l));
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1);
  config.blockDim = dim3(32);
  for (const Case& each : kCases) {
    auto* result = static_cast<l*>(memory);
    cudaLaunchKernelEx(&config, run_instruction, each.instruction, each.a, each.b, each.c, result);
    ++checks;
    if (*result == each.result) continue;
    ++failures;
    std::printf("case %d (instruction %d): %#llx, expected %#llx\n", static_cast<int>(&each - kCases), each.instruction,
                *result, each.result);
  }
  cudaFree(memory);
}

}  // namespace

int main() {
  for (const char* order : {"forward", "mixed:1", "mixed:2"}) check_all(order);
  check("write_all_one, strict", write_all_one<true>, "a race: writes", "TERNGRAD_PTX_STRICT");
  check_instructions();
  std::printf("test_ptx: %d checks, %d failures\n", checks, failures);
  return failures == 0 ? 0 : 1;
}
