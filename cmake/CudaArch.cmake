# Chooses the CUDA architectures.
#
# The first of these that is set decides: CMAKE_CUDA_ARCHITECTURES, the environment's
# TORCH_CUDA_ARCH_LIST (torch's form: "8.0;9.0a+PTX") and CUDAARCHS (CMake's form), the default.
#
# Out: GRALORA_CUDA_ARCHITECTURES       for the portable kernels, in CMake's form
#      GRALORA_CUDA_ARCHITECTURES_SM90  for the files *_sm90.cu, which use instructions that only
#                                       compute capability 9.0a has; empty: they are left out
#      GRALORA_CUDA_ARCHITECTURE_NAMES  those with machine code, as the user sees them: 80;90a
#      GRALORA_CUDA_PTX_NAMES           those with PTX, which newer chips compile: 80

# Ampere and Hopper run machine code; everything newer compiles the PTX of 8.0.
set(GRALORA_DEFAULT_CUDA_ARCHITECTURES 80 90a-real)
set(GRALORA_MINIMUM_CUDA_ARCHITECTURE 80)

# torch_arch_list_to_cmake(OUT LIST): "8.0 9.0a+PTX" becomes 80-real;90a-real;90-virtual.
function(torch_arch_list_to_cmake out list)
  set(named_Ampere 8.0 8.6+PTX)
  set(named_Ada 8.9+PTX)
  set(named_Hopper 9.0+PTX)
  string(REGEX REPLACE "[ ,;]+" ";" entries "${list}")
  set(result)
  foreach(entry IN LISTS entries)
    if(entry STREQUAL "")
      continue()
    endif()
    set(expanded "${entry}")
    if(DEFINED named_${entry})
      set(expanded "${named_${entry}}")
    endif()
    foreach(capability IN LISTS expanded)
      if(NOT capability MATCHES "^([0-9]+)\\.([0-9])([af]?)(\\+PTX)?$")
        message(FATAL_ERROR "gralora: TORCH_CUDA_ARCH_LIST must list compute capabilities such as "
                            "8.0, 9.0a or 8.6+PTX, or Ampere, Ada or Hopper, got '${entry}' in '${list}'")
      endif()
      list(APPEND result "${CMAKE_MATCH_1}${CMAKE_MATCH_2}${CMAKE_MATCH_3}-real")
      if(CMAKE_MATCH_4)
        # The PTX of 9.0a runs on 9.0 alone, so +PTX stands for the PTX of 9.0.
        list(APPEND result "${CMAKE_MATCH_1}${CMAKE_MATCH_2}-virtual")
      endif()
    endforeach()
  endforeach()
  list(REMOVE_DUPLICATES result)
  set(${out} "${result}" PARENT_SCOPE)
endfunction()

# check_cuda_architectures(OUT LIST): the architectures of LIST, in CMake's form, that can be built.
# Older ones are dropped with a message: images set lists for everything that torch supports.
function(check_cuda_architectures out list)
  set(result)
  foreach(entry IN LISTS list)
    if(entry MATCHES "^(all|all-major|native)$")
      list(APPEND result "${entry}")
      continue()
    endif()
    if(NOT entry MATCHES "^([0-9]+)[af]?(-real|-virtual)?$")
      message(FATAL_ERROR "gralora: CMAKE_CUDA_ARCHITECTURES must list architectures such as 80, "
                          "90a-real or 80-virtual, got '${entry}' in '${list}'")
    endif()
    if(CMAKE_MATCH_1 LESS GRALORA_MINIMUM_CUDA_ARCHITECTURE)
      message(STATUS "gralora: architecture ${entry} left out, the kernels need "
                     "${GRALORA_MINIMUM_CUDA_ARCHITECTURE} or newer")
    else()
      list(APPEND result "${entry}")
    endif()
  endforeach()
  if(NOT result)
    message(FATAL_ERROR "gralora: no CUDA architecture to build for in '${list}', the kernels need "
                        "${GRALORA_MINIMUM_CUDA_ARCHITECTURE} or newer (for a build without CUDA: "
                        "-C gralora.cuda=off)")
  endif()
  set(${out} "${result}" PARENT_SCOPE)
endfunction()

# cuda_architectures_sm90(OUT LIST): 90a-real when LIST asks for code for compute capability 9.0.
function(cuda_architectures_sm90 out list)
  set(${out} "" PARENT_SCOPE)
  foreach(entry IN LISTS list)
    if(entry MATCHES "^(90a?(-real)?|all|all-major|native)$")
      set(${out} 90a-real PARENT_SCOPE)
    endif()
  endforeach()
endfunction()

# cuda_architecture_names(OUT LIST): 80;90a-real;90-virtual becomes 80;90a.
function(cuda_architecture_names out list)
  list(FILTER list EXCLUDE REGEX "-virtual$")
  list(TRANSFORM list REPLACE "-real$" "")
  list(REMOVE_DUPLICATES list)
  set(${out} "${list}" PARENT_SCOPE)
endfunction()

# cuda_ptx_names(OUT LIST): 80;90a-real;90-virtual becomes 80;90.
function(cuda_ptx_names out list)
  list(FILTER list EXCLUDE REGEX "-real$|^(all|all-major|native)$")
  list(TRANSFORM list REPLACE "-virtual$" "")
  list(REMOVE_DUPLICATES list)
  set(${out} "${list}" PARENT_SCOPE)
endfunction()

if(CMAKE_CUDA_ARCHITECTURES)
  set(requested "${CMAKE_CUDA_ARCHITECTURES}")
elseif(NOT "$ENV{TORCH_CUDA_ARCH_LIST}" STREQUAL "")
  torch_arch_list_to_cmake(requested "$ENV{TORCH_CUDA_ARCH_LIST}")
elseif(NOT "$ENV{CUDAARCHS}" STREQUAL "")
  set(requested "$ENV{CUDAARCHS}")
else()
  set(requested "${GRALORA_DEFAULT_CUDA_ARCHITECTURES}")
endif()
check_cuda_architectures(GRALORA_CUDA_ARCHITECTURES "${requested}")
cuda_architectures_sm90(GRALORA_CUDA_ARCHITECTURES_SM90 "${GRALORA_CUDA_ARCHITECTURES}")
cuda_architecture_names(GRALORA_CUDA_ARCHITECTURE_NAMES "${GRALORA_CUDA_ARCHITECTURES}")
cuda_ptx_names(GRALORA_CUDA_PTX_NAMES "${GRALORA_CUDA_ARCHITECTURES}")
