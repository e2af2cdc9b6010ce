// libnvrtc.so of the same kind: takes exactly the texts that were compiled into libcuda.so.1, and gives their names as images.
#include <cstdint>
#include <cstring>
#include <string>

#include "texts.hpp"

using Result = int;
struct Program {
    std::string text, name, log;
    bool compiled = false;
};
#define API extern "C" __attribute__((visibility("default"))) Result

static uint64_t fnv(const std::string& text) {
    uint64_t h = 0xcbf29ce484222325u;
    for (unsigned char c : text) h = (h ^ c) * 0x100000001b3u;
    return h;
}

API nvrtcVersion(int* major, int* minor) {
    *major = 13;
    *minor = 0;
    return 0;
}
API nvrtcCreateProgram(Program** program, const char* text, const char* name, int headers, const char* const*,
                       const char* const*) {
    if (!text || headers) return 3;
    *program = new Program{text, name ? name : "", ""};
    return 0;
}
API nvrtcDestroyProgram(Program** program) {
    delete *program;
    *program = nullptr;
    return 0;
}
API nvrtcCompileProgram(Program* program, int count, const char* const* options) {
    bool architecture = false;
    for (int i = 0; i < count; i++) architecture |= !strncmp(options[i], "--gpu-architecture=sm_", 22);
    if (!architecture) {
        program->log = "no architecture was named";
        return 5;
    }
    for (const auto& known : TEXTS) {
        if (program->name == known.name && fnv(program->text) == known.hash) {
            program->compiled = true;
            return 0;
        }
    }
    program->log = "the text of " + program->name + " is not what was built for the CPU; build it again";
    return 6;
}
API nvrtcGetProgramLogSize(Program* program, size_t* size) {
    *size = program->log.size() + 1;
    return 0;
}
API nvrtcGetProgramLog(Program* program, char* log) {
    memcpy(log, program->log.c_str(), program->log.size() + 1);
    return 0;
}
API nvrtcGetCUBINSize(Program* program, size_t* size) {
    if (!program->compiled) return 4;
    *size = strlen("cuda on cpu:") + program->name.size() + 1;
    return 0;
}
API nvrtcGetCUBIN(Program* program, char* image) {
    if (!program->compiled) return 4;
    auto text = "cuda on cpu:" + program->name;
    memcpy(image, text.c_str(), text.size() + 1);
    return 0;
}
