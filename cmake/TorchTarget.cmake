# Imported targets for torch, made from its folder alone.
#
# torch's own CMake package is not used: it demands a full CUDA installation even from a build that
# has its compiler from wheels, changes the global architecture flags, and leaves out torch_python.
#
# In:  GRALORA_TORCH_ROOT, GRALORA_TORCH_CXX11_ABI, GRALORA_CUDA, GRALORA_CUDA_INCLUDE
# Out: gralora::torch       headers, c10, torch_cpu, torch and torch_python
#      gralora::torch_cuda  the same, c10_cuda, torch_cuda and the toolkit's headers (CUDA builds)

function(gralora_torch_libraries out)
  set(paths)
  foreach(name IN LISTS ARGN)
    set(path "${GRALORA_TORCH_ROOT}/lib/${CMAKE_SHARED_LIBRARY_PREFIX}${name}${CMAKE_SHARED_LIBRARY_SUFFIX}")
    if(NOT EXISTS "${path}")
      message(FATAL_ERROR "gralora: torch in ${GRALORA_TORCH_ROOT} lacks ${path}")
    endif()
    list(APPEND paths "${path}")
  endforeach()
  set(${out} "${paths}" PARENT_SCOPE)
endfunction()

gralora_torch_libraries(torch_libraries c10 torch_cpu torch torch_python)
add_library(gralora::torch INTERFACE IMPORTED)
target_include_directories(
  gralora::torch SYSTEM INTERFACE "${GRALORA_TORCH_ROOT}/include"
                                  "${GRALORA_TORCH_ROOT}/include/torch/csrc/api/include")
target_compile_definitions(gralora::torch
                           INTERFACE "_GLIBCXX_USE_CXX11_ABI=${GRALORA_TORCH_CXX11_ABI}")
target_link_libraries(gralora::torch INTERFACE ${torch_libraries})

if(GRALORA_CUDA)
  gralora_torch_libraries(torch_cuda_libraries c10_cuda torch_cuda)
  add_library(gralora::torch_cuda INTERFACE IMPORTED)
  target_include_directories(gralora::torch_cuda SYSTEM INTERFACE "${GRALORA_CUDA_INCLUDE}")
  target_link_libraries(gralora::torch_cuda INTERFACE gralora::torch ${torch_cuda_libraries})
endif()
