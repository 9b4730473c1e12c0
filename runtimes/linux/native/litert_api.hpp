// The part of LiteRT's C API that is called here, declared by itself: the published package holds the library and no
// headers. Names, types and numbers are those of litert/c/*.h of the version that build.py pins, (c) Google LLC,
// Apache-2.0. The API still changes between versions (LiteRtCreateModelFromFile took no environment before 2.2), so the
// pinned library and this page go together.

#pragma once

#include <cstddef>
#include <cstdint>

using LiteRtStatus = int;  // 0: good
using LiteRtParamIndex = std::size_t;

#define EDGEKD_LITERT_HANDLE(name) \
  struct name##T;                  \
  using name = name##T*

EDGEKD_LITERT_HANDLE(LiteRtEnvironment);
EDGEKD_LITERT_HANDLE(LiteRtModel);
EDGEKD_LITERT_HANDLE(LiteRtOptions);
EDGEKD_LITERT_HANDLE(LiteRtOpaqueOptions);
EDGEKD_LITERT_HANDLE(LiteRtCompiledModel);
EDGEKD_LITERT_HANDLE(LiteRtSignature);
EDGEKD_LITERT_HANDLE(LiteRtSubgraph);
EDGEKD_LITERT_HANDLE(LiteRtTensor);
EDGEKD_LITERT_HANDLE(LiteRtTensorBuffer);
EDGEKD_LITERT_HANDLE(LiteRtTensorBufferRequirements);
EDGEKD_LITERT_HANDLE(LiteRtProfiler);

constexpr int kLiteRtHwAcceleratorCpu = 1;
constexpr int kLiteRtLockRead = 0;
constexpr int kLiteRtLockWrite = 1;
constexpr int kLiteRtQuantizationPerTensor = 1;
enum LiteRtElementType : int {
  kLiteRtFloat32 = 1,
  kLiteRtInt32 = 2,
  kLiteRtUInt8 = 3,
  kLiteRtInt64 = 4,
  kLiteRtInt8 = 9,
};

struct LiteRtLayout {
  unsigned int rank : 7;
  unsigned int has_strides : 1;
  int32_t dimensions[8];
  uint32_t strides[8];
};
struct LiteRtRankedTensorType {
  int element_type;
  LiteRtLayout layout;
};
struct LiteRtQuantizationPerTensor {
  float scale;
  int64_t zero_point;
};
struct LiteRtMemoryUsage {
  std::size_t total_allocated_bytes, in_use_allocated_bytes, private_footprint_bytes;
};
struct ProfiledEventData {
  const char* tag;
  int event_type;
  uint64_t start_timestamp_us, elapsed_time_us;
  LiteRtMemoryUsage begin_memory, end_memory;
  uint64_t metadata1, metadata2;
  int event_source;
};
static_assert(sizeof(LiteRtRankedTensorType) == 72 && sizeof(LiteRtQuantizationPerTensor) == 16);

constexpr int kLiteRtOperatorEvent = 1 << 1;          // an operator of LiteRT, or all that a delegate took
constexpr int kLiteRtDelegateOperatorEvent = 1 << 2;  // one operator in a delegate
constexpr int kLiteRtDelegateProfiledEvent = 1 << 3;

extern "C" {
LiteRtStatus LiteRtCreateEnvironment(int count, const void* options, LiteRtEnvironment*);
LiteRtStatus LiteRtCreateModelFromFile(LiteRtEnvironment, const char* path, LiteRtModel*);
LiteRtStatus LiteRtCreateOptions(LiteRtOptions*);
LiteRtStatus LiteRtSetOptionsHardwareAccelerators(LiteRtOptions, int);
LiteRtStatus LiteRtCreateOpaqueOptions(const char* identifier, void* payload, void (*free)(void*), LiteRtOpaqueOptions*);
LiteRtStatus LiteRtAddOpaqueOptions(LiteRtOptions, LiteRtOpaqueOptions);
LiteRtStatus LiteRtCreateCompiledModel(LiteRtEnvironment, LiteRtModel, LiteRtOptions, LiteRtCompiledModel*);
LiteRtStatus LiteRtCompiledModelIsFullyAccelerated(LiteRtCompiledModel, bool*);
LiteRtStatus LiteRtGetNumModelSignatures(LiteRtModel, LiteRtParamIndex*);
LiteRtStatus LiteRtGetModelSignature(LiteRtModel, LiteRtParamIndex, LiteRtSignature*);
LiteRtStatus LiteRtGetSignatureSubgraph(LiteRtSignature, LiteRtSubgraph*);
LiteRtStatus LiteRtGetNumSignatureInputs(LiteRtSignature, LiteRtParamIndex*);
LiteRtStatus LiteRtGetNumSignatureOutputs(LiteRtSignature, LiteRtParamIndex*);
LiteRtStatus LiteRtGetSignatureInputName(LiteRtSignature, LiteRtParamIndex, const char**);
LiteRtStatus LiteRtGetSignatureKey(LiteRtSignature, const char**);
LiteRtStatus LiteRtGetSignatureOutputName(LiteRtSignature, LiteRtParamIndex, const char**);
LiteRtStatus LiteRtGetSignatureInputTensorByIndex(LiteRtSignature, LiteRtParamIndex, LiteRtTensor*);
LiteRtStatus LiteRtGetSignatureOutputTensorByIndex(LiteRtSignature, LiteRtParamIndex, LiteRtTensor*);
LiteRtStatus LiteRtGetSubgraphOutput(LiteRtSubgraph, LiteRtParamIndex, LiteRtTensor*);
LiteRtStatus LiteRtGetTensorName(LiteRtTensor, const char**);
LiteRtStatus LiteRtGetTensorIndex(LiteRtTensor, uint32_t*);
LiteRtStatus LiteRtGetRankedTensorType(LiteRtTensor, LiteRtRankedTensorType*);
LiteRtStatus LiteRtGetQuantizationTypeId(LiteRtTensor, int*);
LiteRtStatus LiteRtGetPerTensorQuantization(LiteRtTensor, LiteRtQuantizationPerTensor*);
LiteRtStatus LiteRtGetCompiledModelInputBufferRequirements(LiteRtCompiledModel, LiteRtParamIndex signature,
                                                           LiteRtParamIndex input, LiteRtTensorBufferRequirements*);
LiteRtStatus LiteRtGetCompiledModelOutputBufferRequirements(LiteRtCompiledModel, LiteRtParamIndex signature,
                                                            LiteRtParamIndex output, LiteRtTensorBufferRequirements*);
LiteRtStatus LiteRtCreateManagedTensorBufferFromRequirements(LiteRtEnvironment, const LiteRtRankedTensorType*,
                                                             LiteRtTensorBufferRequirements, LiteRtTensorBuffer*);
LiteRtStatus LiteRtLockTensorBuffer(LiteRtTensorBuffer, void**, int mode);
LiteRtStatus LiteRtUnlockTensorBuffer(LiteRtTensorBuffer);
LiteRtStatus LiteRtRunCompiledModel(LiteRtCompiledModel, LiteRtParamIndex signature, std::size_t inputs,
                                    LiteRtTensorBuffer*, std::size_t outputs, LiteRtTensorBuffer*);
void LiteRtDestroyTensorBuffer(LiteRtTensorBuffer);
void LiteRtDestroyOptions(LiteRtOptions);
void LiteRtDestroyCompiledModel(LiteRtCompiledModel);
void LiteRtDestroyModel(LiteRtModel);
LiteRtStatus LiteRtCompiledModelGetProfiler(LiteRtCompiledModel, LiteRtProfiler*);
LiteRtStatus LiteRtStartProfiler(LiteRtProfiler);
LiteRtStatus LiteRtStopProfiler(LiteRtProfiler);
LiteRtStatus LiteRtGetNumProfilerEvents(LiteRtProfiler, int*);
LiteRtStatus LiteRtGetProfilerEvents(LiteRtProfiler, int, ProfiledEventData*);
}
