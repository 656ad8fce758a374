# The CUDA kernels, as a build of their own (csrc/kernels) whose folder several builds share: they
# know nothing of torch, so one compilation serves every torch and every environment.
#
# In:  GRALORA_KERNELS_BUILD_DIR, GRALORA_CUDA_*, from CudaToolkit and CudaArch
# Out: gralora::kernels, the static library with the CUDA runtime
include(ExternalProject)

set(library "${GRALORA_KERNELS_BUILD_DIR}/libgralora_kernels.a")
list(JOIN GRALORA_CUDA_ARCHITECTURES "|" architectures)
ExternalProject_Add(
  gralora_kernels_build
  SOURCE_DIR "${PROJECT_SOURCE_DIR}/csrc/kernels"
  BINARY_DIR "${GRALORA_KERNELS_BUILD_DIR}"
  LIST_SEPARATOR "|"
  CMAKE_ARGS
    "-DCMAKE_BUILD_TYPE=${CMAKE_BUILD_TYPE}"
    "-DCMAKE_MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM}"
    "-DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}"
    "-DCMAKE_CUDA_ARCHITECTURES=${architectures}"
    "-DGRALORA_CUDA_ROOT=${GRALORA_CUDA_ROOT}"
  BUILD_ALWAYS ON
  BUILD_BYPRODUCTS "${library}"
  INSTALL_COMMAND ""
  USES_TERMINAL_BUILD ON)

find_package(Threads REQUIRED)
add_library(gralora::kernels STATIC IMPORTED)
set_target_properties(gralora::kernels PROPERTIES IMPORTED_LOCATION "${library}")
target_link_libraries(gralora::kernels INTERFACE "${GRALORA_CUDART_STATIC}" Threads::Threads
                                                 ${CMAKE_DL_LIBS} rt)
add_dependencies(gralora::kernels gralora_kernels_build)
