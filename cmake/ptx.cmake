# For tests without a GPU: the kernels as nvcc builds them, their PTX translated to C++ and run on the host, in place of
# the CUDA runtime (tests/cpp/ptx). Makes terngrad_ptx and terngrad_ptx_runner, and test_ptx.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
set(runner "${CMAKE_CURRENT_SOURCE_DIR}/tests/cpp/ptx")
set(translator "${runner}/translate.py" "${runner}/instructions.py" "${runner}/ptx.py")

# translate(OUT TARGET NAME): C++ of the PTX in the object that a target's source of this name becomes.
function(translate out target name)
  set(object "$<FILTER:$<TARGET_OBJECTS:${target}>,INCLUDE,/${name}[.]cu[.]>")
  add_custom_command(
    OUTPUT "${out}"
    COMMAND "${Python_EXECUTABLE}" "${runner}/translate.py" "${object}" "${out}"
    DEPENDS ${translator} "${object}"
    VERBATIM
  )
  # What a kernel has set and does not use is no mistake of ours. -O1: at -O3 it takes much longer.
  set_source_files_properties("${out}" PROPERTIES COMPILE_OPTIONS "-w;-O1;-I${runner}")
endfunction()

target_compile_options(terngrad_cuda PRIVATE --no-compress)
set(translated)
foreach(source ${cuda_sources})
  get_filename_component(name ${source} NAME_WE)
  set(out "${CMAKE_CURRENT_BINARY_DIR}/${name}.ptx.cpp")
  translate("${out}" terngrad_cuda ${name})
  list(APPEND translated "${out}")
endforeach()

target_compile_definitions(terngrad_cuda_runtime PRIVATE TERNGRAD_CUDA_EMULATED)
add_library(
  terngrad_ptx_runner
  OBJECT
  tests/cpp/ptx/memory.cpp
  tests/cpp/ptx/runner.cpp
  tests/cpp/cuda_emulation/emulation.cpp
  tests/cpp/cuda_emulation/fibers.cpp
)
target_include_directories(terngrad_ptx_runner SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
# Threads of a block jump between stacks, which the checks of fortified sources take for a fault.
target_compile_options(terngrad_ptx_runner PRIVATE -U_FORTIFY_SOURCE)
target_link_libraries(terngrad_ptx_runner PRIVATE terngrad_flags)
add_library(terngrad_ptx OBJECT ${translated})
target_link_libraries(terngrad_ptx PRIVATE terngrad_flags)

if(TERNGRAD_KERNELS_TESTS)
  add_library(terngrad_ptx_controls OBJECT tests/cpp/ptx/controls.cu)
  target_compile_options(terngrad_ptx_controls PRIVATE --no-compress)
  translate("${CMAKE_CURRENT_BINARY_DIR}/controls.ptx.cpp" terngrad_ptx_controls controls)
  add_executable(test_ptx "${CMAKE_CURRENT_BINARY_DIR}/controls.ptx.cpp")
  set_target_properties(test_ptx PROPERTIES LINKER_LANGUAGE CXX)
  target_link_libraries(test_ptx PRIVATE terngrad_flags terngrad_ptx_controls terngrad_ptx_runner)
endif()
