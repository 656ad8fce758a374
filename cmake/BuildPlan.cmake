# Reads the build plan: JSON from the build backend or, in a build by hand, from `python -m
# gralora_build`, which looks for torch and a CUDA toolkit in the same way.
#
# In:  GRALORA_BUILD_PLAN (optional)
#      GRALORA_TORCH, a folder that contains torch, and GRALORA_CUDA_SWITCH, auto, on or off: by hand
# Out: GRALORA_CUDA            whether the CUDA kernels are built
#      GRALORA_TORCH_ROOT      folder of the torch package
#      GRALORA_TORCH_VERSION   2.14.1+cu130
#      GRALORA_TORCH_CXX11_ABI 0 or 1
#      GRALORA_CUDA_VERSION    of nvcc, 13.0.88; empty in a CPU build, like the three below
#      GRALORA_CUDA_ROOT, GRALORA_CUDA_INCLUDE, GRALORA_CUDART_STATIC
#      GRALORA_CUDA_REASON     why this is a CPU build; empty in a CUDA build

if(NOT GRALORA_BUILD_PLAN)
  execute_process(
    COMMAND
      "${CMAKE_COMMAND}" -E env "PYTHONPATH=${CMAKE_CURRENT_LIST_DIR}"
      "GRALORA_TORCH=${GRALORA_TORCH}" "GRALORA_CUDA=${GRALORA_CUDA_SWITCH}"
      "${Python_EXECUTABLE}" -m gralora_build
    OUTPUT_VARIABLE plan
    ERROR_VARIABLE message
    RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "${message}")
  endif()
else()
  set(plan "${GRALORA_BUILD_PLAN}")
endif()

string(JSON GRALORA_TORCH_ROOT GET "${plan}" torch_root)
string(JSON GRALORA_TORCH_VERSION GET "${plan}" torch_version)
string(JSON GRALORA_TORCH_CXX11_ABI GET "${plan}" torch_cxx11_abi)
string(JSON GRALORA_CUDA_VERSION GET "${plan}" cuda_version)
string(JSON GRALORA_CUDA_ROOT GET "${plan}" cuda_root)
string(JSON GRALORA_CUDA_INCLUDE GET "${plan}" cuda_include)
string(JSON GRALORA_CUDART_STATIC GET "${plan}" cudart_static)
string(JSON GRALORA_CUDA_REASON GET "${plan}" reason)

if(GRALORA_CUDA_VERSION)
  set(GRALORA_CUDA ON)
  message(STATUS "gralora: torch ${GRALORA_TORCH_VERSION}, CUDA ${GRALORA_CUDA_VERSION}")
else()
  set(GRALORA_CUDA OFF)
  message(STATUS "gralora: torch ${GRALORA_TORCH_VERSION}, CPU only: ${GRALORA_CUDA_REASON}")
endif()
