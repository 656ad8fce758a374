# Writes and installs gralora/_build_info.py.
#
# Python reads it before it loads the extension, to compare the torch that runs with the torch that
# the extension was built for while a readable error is still possible.

if(GRALORA_CUDA)
  set(cuda_built True)
  list(TRANSFORM GRALORA_CUDA_ARCHITECTURE_NAMES REPLACE "(.+)" "\"\\1\"," OUTPUT_VARIABLE quoted)
  list(JOIN quoted " " architectures)
  set(architectures "(${architectures})")
else()
  set(cuda_built False)
  set(architectures "()")
endif()
string(REPLACE "\\" "\\\\" reason "${GRALORA_CUDA_REASON}")
string(REPLACE "\"" "\\\"" reason "${reason}")

configure_file("${CMAKE_CURRENT_LIST_DIR}/_build_info.py.in"
               "${CMAKE_BINARY_DIR}/_build_info.py" @ONLY)
install(FILES "${CMAKE_BINARY_DIR}/_build_info.py" DESTINATION gralora)
