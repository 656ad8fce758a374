# Gives the CUDA toolkit a name that stays.
#
# A compiler from wheels lies in a build environment that is gone after the build. The folder of the
# kernel builds holds a link to the toolkit instead, named by its version: whatever is compiled sees
# every toolkit of this version under the same path, and stays valid when the toolkit moves.
#
# In:  GRALORA_KERNELS_DIR (optional): folder that the builds of several environments share
#      GRALORA_CUDA_*, from BuildPlan and CudaArch
# Out: GRALORA_KERNELS_BUILD_DIR  folder for the kernels of this toolkit and these architectures
#      GRALORA_CUDA_ROOT, GRALORA_CUDA_INCLUDE, GRALORA_CUDART_STATIC: through the link

if(NOT GRALORA_KERNELS_DIR)
  set(GRALORA_KERNELS_DIR "${CMAKE_BINARY_DIR}/kernels")
endif()
list(JOIN GRALORA_CUDA_ARCHITECTURES "_" names)
set(GRALORA_KERNELS_BUILD_DIR "${GRALORA_KERNELS_DIR}/nvcc${GRALORA_CUDA_VERSION}-${names}")
file(MAKE_DIRECTORY "${GRALORA_KERNELS_BUILD_DIR}")

set(toolkit "${GRALORA_KERNELS_BUILD_DIR}/toolkit")
file(CREATE_LINK "${GRALORA_CUDA_ROOT}" "${toolkit}" SYMBOLIC)
string(REPLACE "${GRALORA_CUDA_ROOT}/" "${toolkit}/" GRALORA_CUDA_INCLUDE "${GRALORA_CUDA_INCLUDE}")
string(REPLACE "${GRALORA_CUDA_ROOT}/" "${toolkit}/" GRALORA_CUDART_STATIC "${GRALORA_CUDART_STATIC}")
set(GRALORA_CUDA_ROOT "${toolkit}")
