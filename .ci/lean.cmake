# Read by CMake at `project("llama.cpp")`. llama-cpp-python forces the common library on, and
# nothing that we load needs it: without it and the tools the build has 83 steps, not 193.
set(LLAMA_BUILD_COMMON OFF CACHE BOOL "llama: build common utils library" FORCE)
