/* terngrad_kernels: gradients to {-1, 0, +1} and back, the same bits on every machine. The C interface.
 *
 * docs/c_api.md is the guide, with a complete program; docs/contract.md says which bytes come out.
 *
 * All memory is the caller's, for the length of the call alone: no call keeps a pointer, and only tgk_layout_create
 * makes an object, which tgk_layout_destroy ends. Pointers need no alignment; one to no elements may be NULL. Inputs
 * are never written, and no output may overlap an input or another output unless said here. Every call may be made from
 * any thread at any time, a layout being shared too; an error leaves all outputs as they were, but for
 * TGK_ERROR_MEMORY and TGK_ERROR_DEVICE, after which their content is unspecified.
 *
 * ABI: within one TGK_ABI_VERSION functions are only added, structures only grow at the end (`struct_size` tells their
 * age), and no number here changes its meaning. */
#ifndef TERNGRAD_KERNELS_H
#define TERNGRAD_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define TGK_ABI_VERSION 1

#if defined(__GNUC__)
#define TGK_API __attribute__((visibility("default")))
#else
#define TGK_API
#endif

#if defined(__cplusplus)
#define TGK_NOEXCEPT noexcept
extern "C" {
#else
#define TGK_NOEXCEPT
#endif

/* ---- outcomes */

typedef int32_t tgk_status;
enum {
  TGK_OK = 0,
  TGK_ERROR_VALUE = 1,       /* a size, number or pointer that cannot be, or outputs that overlap */
  TGK_ERROR_TYPE = 2,        /* a dtype that is none */
  TGK_ERROR_CORRUPT = 3,     /* tgk_validate: bytes that no encoder writes */
  TGK_ERROR_UNSUPPORTED = 4, /* what another build or a later version may do: a device, a field not known here */
  TGK_ERROR_MEMORY = 5,      /* no memory for the bookkeeping of a call */
  TGK_ERROR_INTERNAL = 6,    /* a defect of this library */
  TGK_ERROR_DEVICE = 7       /* what CUDA refused, in its own words */
};

/* "TGK_ERROR_VALUE"; "unknown" for what is no status. */
TGK_API const char* tgk_status_name(tgk_status status) TGK_NOEXCEPT;

/* What the last failing call of this thread said: "x[1]: NULL, expected 12 elements". "" if none failed yet; a call
 * that succeeds leaves it. Valid until a call of this thread fails; at most 511 bytes. */
TGK_API const char* tgk_last_error(void) TGK_NOEXCEPT;

/* ---- the library */

/* The TGK_ABI_VERSION that the library was built with: compare it where the library is loaded by name. */
TGK_API int32_t tgk_abi_version(void) TGK_NOEXCEPT;

/* "0.1.0" */
TGK_API const char* tgk_version(void) TGK_NOEXCEPT;

/* The instruction set in use: "scalar", "avx2", ... The widest that this processor runs, or what the environment
 * variable TERNGRAD_KERNELS_ISA says. It is read once, when the library is first called; while it names something that
 * cannot run here, all calls fail with TGK_ERROR_VALUE, and this one gives NULL. */
TGK_API const char* tgk_isa(void) TGK_NOEXCEPT;

/* Threads that one call may use, at most 1024, for the whole process. Default: TERNGRAD_KERNELS_NUM_THREADS (read as
 * above; 0 here while it is none), or the processors that this process may run on. The bits do not depend on it. */
TGK_API int32_t tgk_get_num_threads(void) TGK_NOEXCEPT;
TGK_API tgk_status tgk_set_num_threads(int32_t count) TGK_NOEXCEPT;

/* ---- types of elements, packings, places (contract, sections 1 and 5) */

enum { TGK_FLOAT32 = 0, TGK_FLOAT16 = 1, TGK_BFLOAT16 = 2, TGK_FLOAT64 = 3 };

enum {
  TGK_PACKING_TWO_BIT = 0, /* 16x: 4 trits a byte */
  TGK_PACKING_BASE3 = 1,   /* 20x: 5 trits a byte */
  TGK_PACKING_FLOAT32 = 2, /* carried as it is: for small layers */
  /* Sums of the trits of up to 7, 127 and 32767 workers: what tgk_sum_trits makes and all that decodes takes. */
  TGK_PACKING_COUNTS4 = 3,
  TGK_PACKING_COUNTS8 = 4,
  TGK_PACKING_COUNTS16 = 5
};

/* DLPack's numbers. */
enum { TGK_DEVICE_CPU = 1, TGK_DEVICE_CUDA = 2 };

/* Where the pointers of a call point, and in what order it runs. NULL in its place: host memory; the call has run when
 * it returns, and with TGK_DEVICE_CPU all but struct_size is 0.
 *
 * TGK_DEVICE_CUDA: all arrays (those of scales and limits and `data` too, but not `weights`, lists of pointers, and
 * what layouts are made from) are memory of that device, at multiples of their element. The call is put on the stream
 * and returns without waiting; all memory has to live until it has run. It may be captured in a graph, but for
 * tgk_validate, which waits for its result. TGK_ERROR_UNSUPPORTED where the library is built without. The device's
 * first call with a layout allocates some 200 bytes of it for each layer or block, and waits for their copy alone. */
typedef struct tgk_stream {
  size_t struct_size; /* sizeof(tgk_stream) */
  int32_t device_type;
  int32_t device_id;
  void* handle; /* a cudaStream_t; NULL is CUDA's default stream */
  /* Memory of the device for the call's own use until it has run, at a multiple of 16: tgk_scratch_nbytes of it. */
  void* scratch;
  int64_t scratch_nbytes;
} tgk_stream;
#define TGK_STREAM_INIT {sizeof(tgk_stream), TGK_DEVICE_CPU, 0, NULL, NULL, 0}

/* ---- one layer, without a layout
 *
 * `clip`: the limit is clip times the root mean square (2.5 is the paper's); 0 for none. Random bits depend on seed
 * (each worker's own), offset (the step), layer (0 <= layer < 2^31) and the element's position alone. 0 <= n <= 2^36.
 * The message is that of a layout of this one layer. */

/* Bytes of the message of n elements. */
TGK_API tgk_status tgk_layer_nbytes(int64_t n, int32_t packing, int64_t* nbytes) TGK_NOEXCEPT;

/* x[n] -> data[nbytes]. */
TGK_API tgk_status tgk_encode_layer(const void* x, int64_t n, int32_t dtype, int32_t packing, double clip,
                                    uint64_t seed, uint64_t offset, int64_t layer, void* data, int64_t nbytes,
                                    const tgk_stream* stream) TGK_NOEXCEPT;

/* out[n] = weight * message */
TGK_API tgk_status tgk_decode_layer(const void* data, int64_t nbytes, int32_t packing, double weight, void* out,
                                    int64_t n, int32_t dtype, const tgk_stream* stream) TGK_NOEXCEPT;

/* out[n] += weight * message */
TGK_API tgk_status tgk_accumulate_layer(const void* data, int64_t nbytes, int32_t packing, double weight, void* out,
                                        int64_t n, int32_t dtype, const tgk_stream* stream) TGK_NOEXCEPT;

/* ---- layouts: a bucket of layers becomes one message */

typedef struct tgk_layout tgk_layout;

/* sizes: elements of each layer. packings: `packing_count` of them, 1 for all layers or one a layer. block: elements
 * that share a scale, a multiple of 2560; 0 for a scale a layer. shards: messages of equal length that the bucket is
 * cut into. shard: -1, or 0 to shards - 1 for the layout of that shard alone. All that is passed is copied. */
TGK_API tgk_status tgk_layout_create(const int64_t* sizes, int64_t layers, const int32_t* packings,
                                     int64_t packing_count, int64_t block, int64_t shards, int64_t shard,
                                     tgk_layout** layout) TGK_NOEXCEPT;

/* The same layers and cuts, all layers but the float32 ones packed as `packing`: what tgk_sum_trits and tgk_repack
 * write. */
TGK_API tgk_status tgk_layout_with_ternary(const tgk_layout* layout, int32_t packing, tgk_layout** result) TGK_NOEXCEPT;

/* NULL is nothing to do. No other call may be using it. */
TGK_API void tgk_layout_destroy(tgk_layout* layout) TGK_NOEXCEPT;

/* These are -1 for a NULL layout. */
TGK_API int64_t tgk_layout_nbytes(const tgk_layout* layout) TGK_NOEXCEPT; /* of the message */
TGK_API int64_t tgk_layout_size(const tgk_layout* layout) TGK_NOEXCEPT;   /* elements of all layers */
TGK_API int64_t tgk_layout_layers(const tgk_layout* layout) TGK_NOEXCEPT;
TGK_API int64_t tgk_layout_groups(const tgk_layout* layout) TGK_NOEXCEPT; /* scales and limits: layers, or blocks */
TGK_API int64_t tgk_layout_pieces(const tgk_layout* layout) TGK_NOEXCEPT;

/* A run of elements of one layer (or block) in one shard, with a scale field of its own. */
typedef struct tgk_piece {
  size_t struct_size; /* sizeof(tgk_piece), set before the call */
  int64_t layer;
  int64_t first;          /* its first element's position in the layer */
  int64_t size;           /* elements */
  int64_t at;             /* its first element's position in a flat array */
  int64_t group;          /* whose scale and limit it takes */
  int64_t scale_at;       /* byte offset of its scale, a float32 */
  int64_t payload_at;     /* byte offset of its payload */
  int64_t payload_nbytes; /* length of its payload */
  int32_t packing;
  int32_t reserved; /* 0 */
} tgk_piece;
#define TGK_PIECE_INIT {sizeof(tgk_piece), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* 0 <= index < tgk_layout_pieces: in the order of the message. */
TGK_API tgk_status tgk_layout_piece(const tgk_layout* layout, int64_t index, tgk_piece* piece) TGK_NOEXCEPT;

/* The scratch that a call needs on a CUDA device at the most. measured: 1 for tgk_scales and tgk_validate, and for
 * tgk_clip, tgk_ternarize, tgk_encode and tgk_repack where scales are not passed; else 0. pointers: all that the call
 * has in lists (`count`, `out_count`, ...). For tgk_sum_trits of `result`. The calls for one layer are those of its
 * layout; tgk_pack and tgk_unpack need none. */
TGK_API tgk_status tgk_scratch_nbytes(const tgk_layout* layout, int32_t measured, int64_t pointers,
                                      int64_t* nbytes) TGK_NOEXCEPT;

/* ---- operations on buckets
 *
 * A bucket is `count` pointers: 1, to a flat array of all its layers, one after the other; or one to each layer. (For
 * the layout of a shard: 1, to a flat array of its pieces.) `scale` and `limit` have tgk_layout_groups elements each.
 */

/* What ternarize, encode and repack do beside looking at x. */
typedef struct tgk_options {
  size_t struct_size; /* sizeof(tgk_options) */
  double clip;        /* as above; not looked at where scales are passed */
  uint64_t seed;
  uint64_t offset;
  int64_t layer;      /* layer i of the bucket draws as layer + i; layer + layers <= 2^31 */
  const float* scale; /* passed scales, as workers that share a scale do: both, or both NULL */
  const float* limit;
  /* Not NULL: where the seed or the offset lies instead, on the device of the call; so that a graph that is replayed
   * draws new bits. At a multiple of 4 there. */
  const uint64_t* seed_at;
  const uint64_t* offset_at;
} tgk_options;
#define TGK_OPTIONS_INIT {sizeof(tgk_options), 2.5, 0, 0, 0, NULL, NULL, NULL, NULL}
/* Nothing is clipped, which would bias a second hop. */
#define TGK_REPACK_OPTIONS_INIT {sizeof(tgk_options), 0.0, 0, 0, 0, NULL, NULL, NULL, NULL}

/* The scale and the limit of each group. center: 0, or 1 to measure the deviation about the mean. */
TGK_API tgk_status tgk_scales(const tgk_layout* layout, const void* const* x, int64_t count, int32_t dtype, double clip,
                              int32_t center, float* scale, float* limit, const tgk_stream* stream) TGK_NOEXCEPT;

/* Gradient clipping alone, to +-limit: measured, or as passed (NULL: measured). out[i] may be x[i]. */
TGK_API tgk_status tgk_clip(const tgk_layout* layout, const void* const* x, int64_t count, int32_t dtype, double clip,
                            int32_t center, const float* limit, void* const* out, int64_t out_count,
                            const tgk_stream* stream) TGK_NOEXCEPT;

/* Trits, one an int8. options NULL: TGK_OPTIONS_INIT. */
TGK_API tgk_status tgk_ternarize(const tgk_layout* layout, const void* const* x, int64_t count, int32_t dtype,
                                 const tgk_options* options, int8_t* const* trits, int64_t trits_count, float* scale,
                                 const tgk_stream* stream) TGK_NOEXCEPT;

/* The message: data[tgk_layout_nbytes]. options NULL: TGK_OPTIONS_INIT. */
TGK_API tgk_status tgk_encode(const tgk_layout* layout, const void* const* x, int64_t count, int32_t dtype,
                              const tgk_options* options, void* data, int64_t nbytes,
                              const tgk_stream* stream) TGK_NOEXCEPT;

/* out = weight * message. Any bytes of the right length decode (tgk_validate tells whether an encoder wrote them). */
TGK_API tgk_status tgk_decode(const tgk_layout* layout, const void* data, int64_t nbytes, double weight,
                              void* const* out, int64_t out_count, int32_t dtype,
                              const tgk_stream* stream) TGK_NOEXCEPT;

/* out += weight * message */
TGK_API tgk_status tgk_accumulate(const tgk_layout* layout, const void* data, int64_t nbytes, double weight,
                                  void* const* out, int64_t out_count, int32_t dtype,
                                  const tgk_stream* stream) TGK_NOEXCEPT;

/* out = sum of weights[i] * messages[i], i < count, each of nbytes bytes; count >= 1. weights NULL: all 1. */
TGK_API tgk_status tgk_decode_sum(const tgk_layout* layout, const void* const* messages, int64_t count, int64_t nbytes,
                                  const double* weights, void* const* out, int64_t out_count, int32_t dtype,
                                  const tgk_stream* stream) TGK_NOEXCEPT;

/* The narrowest packing for the sums of so many workers, 1 to 32767. */
TGK_API tgk_status tgk_counts_packing(int64_t workers, int32_t* packing) TGK_NOEXCEPT;

/* Adds the trits and counts of workers that share their scales, without decoding: exact, whatever the order.
 * messages[i] is of layouts[i], has tgk_layout_nbytes(layouts[i]) bytes, and stands for workers[i] workers (workers
 * NULL: 1 each). result is a layout of the same layers and cuts whose counts hold all of them: tgk_counts_packing,
 * tgk_layout_with_ternary. */
TGK_API tgk_status tgk_sum_trits(const tgk_layout* const* layouts, const void* const* messages, const int64_t* workers,
                                 int64_t count, const tgk_layout* result, void* data, int64_t nbytes,
                                 const tgk_stream* stream) TGK_NOEXCEPT;

/* What tgk_decode_sum gives, ternarized again with random bits of its own: the second hop. result: as layout, but for
 * how trits are packed; layout itself, where that is no counts. options NULL: TGK_REPACK_OPTIONS_INIT. */
TGK_API tgk_status tgk_repack(const tgk_layout* layout, const void* const* messages, int64_t count, int64_t nbytes,
                              const double* weights, const tgk_options* options, const tgk_layout* result, void* data,
                              int64_t data_nbytes, const tgk_stream* stream) TGK_NOEXCEPT;

/* TGK_ERROR_CORRUPT unless the message is canonical (contract, section 5); tgk_last_error says where it is not.
 * workers: 1, but for counts the workers that are in the sums. */
TGK_API tgk_status tgk_validate(const tgk_layout* layout, const void* data, int64_t nbytes, int64_t workers,
                                const tgk_stream* stream) TGK_NOEXCEPT;

/* ---- payloads alone */

/* Bytes of n elements in any packing. 0 <= n <= 2^56, here and below. */
TGK_API tgk_status tgk_payload_nbytes(int64_t n, int32_t packing, int64_t* nbytes) TGK_NOEXCEPT;

/* The signs of trits[n] -> payload[nbytes], in TGK_PACKING_TWO_BIT or TGK_PACKING_BASE3. */
TGK_API tgk_status tgk_pack(const int8_t* trits, int64_t n, int32_t packing, void* payload, int64_t nbytes,
                            const tgk_stream* stream) TGK_NOEXCEPT;
/* Any payload[nbytes] -> trits[n]. */
TGK_API tgk_status tgk_unpack(const void* payload, int64_t nbytes, int32_t packing, int8_t* trits, int64_t n,
                              const tgk_stream* stream) TGK_NOEXCEPT;

#if defined(__cplusplus)
}
#endif

#endif
