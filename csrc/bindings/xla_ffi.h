// The binary interface between XLA and the handlers of its custom calls, as far as ours need it: stated here, because
// jaxlib is no build requirement, and compared with jaxlib's own header by tests/test_jax.py.
//
// XLA keeps this interface stable: fields are only added, at the end of a structure, and every structure that may grow
// starts with its size. What is stated is the same in all versions from 0.1 (jaxlib 0.5.0) to 0.4 (jaxlib 0.11).
#pragma once

#include <cstddef>
#include <cstdint>

namespace terngrad::xla {

constexpr int32_t kMajorVersion = 0;
constexpr int32_t kOldestMinorVersion = 1;
constexpr int32_t kNewestMinorVersion = 4;

// ---- what every structure that may grow starts with

struct Extension {
  size_t struct_size;
  int32_t type;
  Extension* next;
};

struct Version {
  size_t struct_size;
  Extension* extensions;
  int32_t major_version;
  int32_t minor_version;
};

// ---- errors: XLA owns them

struct Error;

enum class ErrorCode : int32_t { invalid_argument = 3, resource_exhausted = 8 };

struct ErrorArguments {
  size_t struct_size;
  Extension* extensions;
  const char* message;
  ErrorCode code;
};

// `code` since 0.4: with less room than that XLA might write behind it.
struct ErrorText {
  size_t struct_size;
  Extension* extensions;
  Error* error;
  const char* message;
  ErrorCode code;
};

struct DestroyedError {
  size_t struct_size;
  Extension* extensions;
  Error* error;
};

// ---- what a call on a device asks for. `context`: of the call's frame

struct StreamArguments {
  size_t struct_size;
  Extension* extensions;
  void* context;
  void* stream;
};

struct AllocateArguments {
  size_t struct_size;
  Extension* extensions;
  void* context;
  size_t size;
  size_t alignment;
  void* data;
};

struct FreeArguments {
  size_t struct_size;
  Extension* extensions;
  void* context;
  size_t size;
  void* data;
};

struct OrdinalArguments {
  size_t struct_size;
  Extension* extensions;
  void* context;
  int32_t ordinal;
};

// Functions that XLA offers. jaxlib 0.5 ends before the last two.
struct Api {
  size_t struct_size;
  Extension* extensions;
  Version version;
  const void* internal;
  Error* (*create_error)(ErrorArguments*);
  Error* (*get_message)(ErrorText*);
  Error* (*destroy_error)(DestroyedError*);
  void (*register_handler)();
  Error* (*get_stream)(StreamArguments*);
  void (*register_type)();
  void (*get_execution_context)();
  void (*set_state)();
  void (*get_state)();
  Error* (*allocate)(AllocateArguments*);
  Error* (*free)(FreeArguments*);
  void (*schedule)();
  void (*number_of_threads)();
  void (*create_future)();
  void (*set_future_available)();
  void (*set_future_error)();
  void (*get_run_id)();
  Error* (*get_ordinal)(OrdinalArguments*);
};

// ---- values

enum class DataType : int32_t {
  int8 = 2,
  int64 = 5,
  uint8 = 6,
  uint32 = 8,
  float16 = 10,
  float32 = 11,
  float64 = 12,
  bfloat16 = 16,
};

// A dense row-major operand or result.
struct Buffer {
  size_t struct_size;
  Extension* extensions;
  DataType type;
  void* data;
  int64_t rank;
  int64_t* dimensions;
};

constexpr int32_t kBuffer = 1;  // the only kind of operand or result

struct Text {
  const char* data;
  size_t size;
};

enum class AttributeKind : int32_t { array = 1, scalar = 3 };

struct ScalarAttribute {
  DataType type;
  void* value;
};

struct ArrayAttribute {
  DataType type;
  size_t size;
  void* data;
};

// ---- a call

// Operands, and results.
struct Buffers {
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  int32_t* kinds;
  Buffer** buffers;
};

struct Attributes {
  size_t struct_size;
  Extension* extensions;
  int64_t size;
  AttributeKind* kinds;
  Text** names;
  void** values;
};

enum class Stage : int32_t { execute = 3 };

// What comes after the attributes, a future for handlers that return before they are done, is not stated.
struct Frame {
  size_t struct_size;
  Extension* extensions;
  const Api* api;
  void* context;
  Stage stage;
  Buffers operands;
  Buffers results;
  Attributes attributes;
};

using Handler = Error*(Frame*);

// ---- the handshake: when a handler is registered it is called with this extension, and only says what it is

constexpr int32_t kMetadataExtension = 1;

// The id of a handler's state follows, which XLA sets to "none" before it asks.
struct Metadata {
  size_t struct_size;
  Version version;
  uint32_t traits;
};

// May be captured into a command buffer (a CUDA graph) and replayed.
constexpr uint32_t kCommandBufferCompatible = 1;

struct MetadataExtension {
  Extension extension;
  Metadata* metadata;
};

}  // namespace terngrad::xla
