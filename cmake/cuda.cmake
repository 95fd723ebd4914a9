# Finds nvcc (the system's, or that of NVIDIA's packages on PyPI) and builds the kernels for CUDA devices with it. Sets
# cuda_libraries, cuda_runtime, cuda_toolkit and cuda_architectures; with AUTO and no nvcc it changes nothing.

# The packages on PyPI (nvidia-cuda-nvcc, -crt, -runtime, -cccl, nvidia-nvvm) make one folder, which nvcc then knows all
# of but where its libraries are: `lib`, and not `lib64`.
if(DEFINED ENV{CUDACXX} AND NOT CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_COMPILER "$ENV{CUDACXX}")
endif()
find_program(terngrad_nvcc nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin PATHS /usr/local/cuda)
if(NOT terngrad_nvcc AND NOT CMAKE_CUDA_COMPILER)
  find_package(Python 3.10 QUIET COMPONENTS Interpreter)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c "import nvidia.cu13 as toolkit; print(list(toolkit.__path__)[0])"
    OUTPUT_VARIABLE packages
    OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_QUIET
    RESULT_VARIABLE status
  )
  if(status EQUAL 0 AND EXISTS "${packages}/bin/nvcc")
    set(CMAKE_CUDA_COMPILER "${packages}/bin/nvcc")
    string(APPEND CMAKE_CUDA_FLAGS_INIT " -L${packages}/lib")
    set(CUDA_CUDART "${packages}/lib/libcudart.so.13" CACHE FILEPATH "")
  endif()
elseif(terngrad_nvcc AND NOT CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_COMPILER "${terngrad_nvcc}")
endif()

# All GPUs that this toolkit builds for: code for those that are common, which newer ones of the same generation run too,
# and PTX, which the driver turns into code for all others, those to come too.
set(
  release_architectures
  75-real
  80-real
  86-real
  89-real
  90-real
  100-real
  120-real
  80-virtual
  120-virtual
)
set(cuda_architectures ${TERNGRAD_KERNELS_CUDA_ARCHITECTURES})
if(cuda_architectures STREQUAL release)
  set(cuda_architectures ${release_architectures})
elseif(NOT cuda_architectures)
  # A release's list takes minutes to build. So does nothing else that is needed on one machine.
  if(EXISTS /dev/nvidiactl AND NOT TERNGRAD_KERNELS_CUDA STREQUAL PTX)
    set(cuda_architectures native)
  else()
    set(cuda_architectures 75-virtual)
  endif()
endif()
set(CMAKE_CUDA_ARCHITECTURES ${cuda_architectures})
set(CMAKE_CUDA_RUNTIME_LIBRARY None) # what links the kernels names the static one itself

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(NOT TERNGRAD_KERNELS_CUDA STREQUAL AUTO)
    message(FATAL_ERROR "TERNGRAD_KERNELS_CUDA=${TERNGRAD_KERNELS_CUDA}: no working nvcc was found; set CUDACXX or CUDA_HOME")
  endif()
  message(STATUS "CUDA: no nvcc, so kernels for the CPU alone")
  set(cuda_architectures)
  return()
endif()

enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
find_package(CUDAToolkit REQUIRED)
set(cuda_toolkit "${CMAKE_CUDA_COMPILER_VERSION}")
message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER} ${cuda_toolkit} for ${cuda_architectures}")

add_library(terngrad_cuda OBJECT ${cuda_sources})
# As on the host: IEEE arithmetic, and fma only where the contract says so.
target_compile_options(
  terngrad_cuda
  PRIVATE --fmad=false --ftz=false --prec-div=true --prec-sqrt=true -Xcompiler=-ffp-contract=off,-Wall,-Wextra
)
if(TERNGRAD_KERNELS_WERROR)
  target_compile_options(terngrad_cuda PRIVATE -Werror=all-warnings -Xcompiler=-Werror)
endif()

add_library(terngrad_cuda_runtime OBJECT csrc/runtime/cuda.cpp)
target_link_libraries(terngrad_cuda_runtime PRIVATE terngrad_flags)
target_include_directories(terngrad_cuda_runtime SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
set(cuda_runtime)
if(TERNGRAD_KERNELS_CUDA STREQUAL PTX)
  include(cmake/ptx.cmake)
  set(cuda_libraries terngrad_cuda terngrad_cuda_runtime terngrad_ptx terngrad_ptx_runner)
else()
  set(cuda_libraries terngrad_cuda terngrad_cuda_runtime CUDA::cudart_static)
endif()
