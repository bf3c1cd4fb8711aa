# Read by CMake at `project("llama.cpp")`. llama-cpp-python forces the common library on, and
# nothing that we load needs it: without it and the tools the build has 83 steps, not 193.
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "llama: build common utils library" FORCE)

# GCC before 13.3 drops stores to what _tile_loadconfig reads (its bug 114098): whatever llama.cpp
# then computes by AMX ends with SIGILL.
include(CheckCXXCompilerFlag)
check_cxx_compiler_flag("-Werror -mno-amx-tile" KNOWS_AMX)
if(KNOWS_AMX)
  add_compile_options(-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
endif()
