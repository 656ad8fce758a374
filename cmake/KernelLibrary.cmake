# The CUDA kernels, as a build of their own (csrc/kernels) whose folder several builds share: they
# know nothing of torch, so one compilation serves every torch and every environment.
#
# In:  GRALORA_KERNELS_DIR (optional): folder for the shared builds
#      GRALORA_CUDA_*, from BuildPlan and CudaArch
# Out: gralora::kernels, the static library with the CUDA runtime
include(ExternalProject)

if(NOT GRALORA_KERNELS_DIR)
  set(GRALORA_KERNELS_DIR "${CMAKE_BINARY_DIR}/kernels")
endif()
string(REPLACE ";" "_" names "${GRALORA_CUDA_ARCHITECTURES}")
set(folder "${GRALORA_KERNELS_DIR}/nvcc${GRALORA_CUDA_VERSION}-${names}")

# A compiler from wheels lies in a build environment that is gone after the build. The kernels see
# every toolkit of this version under the same name, so their objects stay valid.
file(MAKE_DIRECTORY "${folder}")
file(CREATE_LINK "${GRALORA_CUDA_ROOT}" "${folder}/toolkit" SYMBOLIC)

set(library "${folder}/libgralora_kernels.a")
string(REPLACE ";" "|" architectures "${GRALORA_CUDA_ARCHITECTURES}")
ExternalProject_Add(
  gralora_kernels_build
  SOURCE_DIR "${PROJECT_SOURCE_DIR}/csrc/kernels"
  BINARY_DIR "${folder}"
  LIST_SEPARATOR "|"
  CMAKE_ARGS
    "-DCMAKE_BUILD_TYPE=${CMAKE_BUILD_TYPE}"
    "-DCMAKE_MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM}"
    "-DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}"
    "-DCMAKE_CUDA_ARCHITECTURES=${architectures}"
    "-DGRALORA_CUDA_ROOT=${folder}/toolkit"
  BUILD_ALWAYS ON
  BUILD_BYPRODUCTS "${library}"
  INSTALL_COMMAND ""
  USES_TERMINAL_BUILD ON)

find_package(Threads REQUIRED)
add_library(gralora::kernels STATIC IMPORTED)
set_target_properties(gralora::kernels PROPERTIES IMPORTED_LOCATION "${library}")
target_include_directories(gralora::kernels SYSTEM INTERFACE "${GRALORA_CUDA_INCLUDE}")
target_link_libraries(gralora::kernels INTERFACE "${GRALORA_CUDART_STATIC}" Threads::Threads
                                                 ${CMAKE_DL_LIBS} rt)
add_dependencies(gralora::kernels gralora_kernels_build)
