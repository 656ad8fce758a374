# Imported targets for torch, made from its folder alone.
#
# torch's own CMake package is not used: it demands a full CUDA installation even from a build that
# has its compiler from wheels, changes the global architecture flags, and leaves out torch_python.
#
# In:  GRALORA_TORCH_ROOT, GRALORA_TORCH_VERSION, GRALORA_TORCH_CXX11_ABI
#      GRALORA_CUDA, GRALORA_CUDA_INCLUDE
# Out: gralora::torch       headers, c10, torch_cpu, torch and torch_python
#      gralora::torch_cuda  the same, c10_cuda, torch_cuda and the toolkit's headers (CUDA builds)

# The compiler sees torch through a link that is named by its version, and headers of the system and
# of torch are left out of the dependencies: what was compiled for one environment stays valid for
# every other that has this version of torch, also for the build environment that pip throws away.
set(torch "${CMAKE_BINARY_DIR}/torch-${GRALORA_TORCH_VERSION}")
file(CREATE_LINK "${GRALORA_TORCH_ROOT}" "${torch}" SYMBOLIC)
set(CMAKE_DEPFILE_FLAGS_CXX "-MMD -MT <DEP_TARGET> -MF <DEP_FILE>")

# torch_libraries(OUT NAMES...): the paths of torch's shared libraries.
function(torch_libraries out)
  set(paths)
  foreach(name IN LISTS ARGN)
    set(file "${CMAKE_SHARED_LIBRARY_PREFIX}${name}${CMAKE_SHARED_LIBRARY_SUFFIX}")
    if(NOT EXISTS "${torch}/lib/${file}")
      message(FATAL_ERROR "gralora: torch in ${GRALORA_TORCH_ROOT} lacks lib/${file}")
    endif()
    list(APPEND paths "${torch}/lib/${file}")
  endforeach()
  set(${out} "${paths}" PARENT_SCOPE)
endfunction()

torch_libraries(libraries c10 torch_cpu torch torch_python)
add_library(gralora::torch INTERFACE IMPORTED)
target_include_directories(
  gralora::torch SYSTEM INTERFACE "${torch}/include" "${torch}/include/torch/csrc/api/include")
target_compile_definitions(gralora::torch
                           INTERFACE "_GLIBCXX_USE_CXX11_ABI=${GRALORA_TORCH_CXX11_ABI}")
target_link_libraries(gralora::torch INTERFACE ${libraries})

if(GRALORA_CUDA)
  torch_libraries(cuda_libraries c10_cuda torch_cuda)
  add_library(gralora::torch_cuda INTERFACE IMPORTED)
  target_include_directories(gralora::torch_cuda SYSTEM INTERFACE "${GRALORA_CUDA_INCLUDE}")
  target_link_libraries(gralora::torch_cuda INTERFACE gralora::torch ${cuda_libraries})
endif()
