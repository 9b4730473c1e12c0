// The part of ONNX Runtime's C API that is called here, declared by itself: the published packages that hold the library
// hold no headers.
//
// OrtApi is a table of functions that only ever grows at its end (ONNX Runtime promises that a program built for API
// version N runs with every later library), so an entry's place in it never changes. The places, types and numbers below
// are those of onnxruntime_c_api.h, (c) Microsoft Corporation, MIT licence, API version 11 and later.

#pragma once

#include <cstddef>
#include <cstdint>

struct OrtEnv;
struct OrtSession;
struct OrtSessionOptions;
struct OrtRunOptions;
struct OrtStatus;
struct OrtValue;
struct OrtTypeInfo;
struct OrtTensorTypeAndShapeInfo;
struct OrtMemoryInfo;
struct OrtAllocator;

constexpr uint32_t kOrtApiVersion = 11;
constexpr int kOrtLogError = 3;             // OrtLoggingLevel
constexpr int kOrtEnableAll = 99;           // GraphOptimizationLevel
constexpr int kOrtArenaAllocator = 1;       // OrtAllocatorType
constexpr int kOrtMemTypeDefault = 0;       // OrtMemType
enum OrtElement : int { kOrtFloat = 1, kOrtUint8 = 2, kOrtInt8 = 3, kOrtInt32 = 6, kOrtInt64 = 7 };

struct OrtApiBase {
  const void* const* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

extern "C" const OrtApiBase* OrtGetApiBase() noexcept;

// An entry of the table: its place, and its type.
template <std::size_t place, typename Function>
struct OrtEntry;
template <std::size_t place, typename Result, typename... Arguments>
struct OrtEntry<place, Result(Arguments...)> {
  const void* const* table;
  Result operator()(Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(const_cast<void*>(table[place]))(arguments...);
  }
};

struct OrtFunctions {
  explicit OrtFunctions(const void* const* t)
      : GetErrorMessage{t}, CreateEnv{t}, CreateSession{t}, Run{t}, CreateSessionOptions{t}, EnableProfiling{t},
        SetSessionLogSeverityLevel{t}, SetSessionGraphOptimizationLevel{t}, SetIntraOpNumThreads{t},
        SetInterOpNumThreads{t}, SessionGetInputCount{t}, SessionGetOutputCount{t}, SessionGetInputTypeInfo{t},
        SessionGetOutputTypeInfo{t}, SessionGetInputName{t}, SessionGetOutputName{t}, CreateTensorWithDataAsOrtValue{t}, GetTensorMutableData{t},
        CastTypeInfoToTensorInfo{t}, GetTensorElementType{t}, GetDimensionsCount{t}, GetDimensions{t},
        GetTensorTypeAndShape{t}, CreateCpuMemoryInfo{t}, AllocatorFree{t}, GetAllocatorWithDefaultOptions{t},
        ReleaseStatus{t}, ReleaseMemoryInfo{t}, ReleaseSession{t}, ReleaseValue{t}, ReleaseTypeInfo{t},
        ReleaseTensorTypeAndShapeInfo{t}, ReleaseSessionOptions{t}, SessionEndProfiling{t}, AddSessionConfigEntry{t} {}

  OrtEntry<2, const char*(const OrtStatus*)> GetErrorMessage;
  OrtEntry<3, OrtStatus*(int severity, const char* id, OrtEnv**)> CreateEnv;
  OrtEntry<7, OrtStatus*(const OrtEnv*, const char* path, const OrtSessionOptions*, OrtSession**)> CreateSession;
  OrtEntry<9, OrtStatus*(OrtSession*, const OrtRunOptions*, const char* const*, const OrtValue* const*, std::size_t,
                         const char* const*, std::size_t, OrtValue**)> Run;
  OrtEntry<10, OrtStatus*(OrtSessionOptions**)> CreateSessionOptions;
  OrtEntry<14, OrtStatus*(OrtSessionOptions*, const char* prefix)> EnableProfiling;
  OrtEntry<22, OrtStatus*(OrtSessionOptions*, int)> SetSessionLogSeverityLevel;
  OrtEntry<23, OrtStatus*(OrtSessionOptions*, int)> SetSessionGraphOptimizationLevel;
  OrtEntry<24, OrtStatus*(OrtSessionOptions*, int)> SetIntraOpNumThreads;
  OrtEntry<25, OrtStatus*(OrtSessionOptions*, int)> SetInterOpNumThreads;
  OrtEntry<30, OrtStatus*(const OrtSession*, std::size_t*)> SessionGetInputCount;
  OrtEntry<31, OrtStatus*(const OrtSession*, std::size_t*)> SessionGetOutputCount;
  OrtEntry<33, OrtStatus*(const OrtSession*, std::size_t, OrtTypeInfo**)> SessionGetInputTypeInfo;
  OrtEntry<34, OrtStatus*(const OrtSession*, std::size_t, OrtTypeInfo**)> SessionGetOutputTypeInfo;
  OrtEntry<36, OrtStatus*(const OrtSession*, std::size_t, OrtAllocator*, char**)> SessionGetInputName;
  OrtEntry<37, OrtStatus*(const OrtSession*, std::size_t, OrtAllocator*, char**)> SessionGetOutputName;
  OrtEntry<49, OrtStatus*(const OrtMemoryInfo*, void*, std::size_t bytes, const int64_t* shape, std::size_t rank, int,
                          OrtValue**)> CreateTensorWithDataAsOrtValue;
  OrtEntry<51, OrtStatus*(OrtValue*, void**)> GetTensorMutableData;
  OrtEntry<55, OrtStatus*(const OrtTypeInfo*, const OrtTensorTypeAndShapeInfo**)> CastTypeInfoToTensorInfo;
  OrtEntry<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int*)> GetTensorElementType;
  OrtEntry<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, std::size_t*)> GetDimensionsCount;
  OrtEntry<62, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int64_t*, std::size_t)> GetDimensions;
  OrtEntry<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)> GetTensorTypeAndShape;
  OrtEntry<69, OrtStatus*(int allocator, int memory, OrtMemoryInfo**)> CreateCpuMemoryInfo;
  OrtEntry<76, OrtStatus*(OrtAllocator*, void*)> AllocatorFree;
  OrtEntry<78, OrtStatus*(OrtAllocator**)> GetAllocatorWithDefaultOptions;
  OrtEntry<93, void(OrtStatus*)> ReleaseStatus;
  OrtEntry<94, void(OrtMemoryInfo*)> ReleaseMemoryInfo;
  OrtEntry<95, void(OrtSession*)> ReleaseSession;
  OrtEntry<96, void(OrtValue*)> ReleaseValue;
  OrtEntry<98, void(OrtTypeInfo*)> ReleaseTypeInfo;
  OrtEntry<99, void(OrtTensorTypeAndShapeInfo*)> ReleaseTensorTypeAndShapeInfo;
  OrtEntry<100, void(OrtSessionOptions*)> ReleaseSessionOptions;
  OrtEntry<110, OrtStatus*(OrtSession*, OrtAllocator*, char**)> SessionEndProfiling;
  OrtEntry<130, OrtStatus*(OrtSessionOptions*, const char* key, const char* value)> AddSessionConfigEntry;
};
