// What this library was compiled for.
#pragma once

namespace stompp::binding {

// As nvcc names them, with "ptx" for what a driver compiles, joined by "_": "80_90a_120_120ptx".
const char* architectures();

// The compute capability (10 * major + minor) of the code that a device of the given one runs, 0 if there is none.
int code_for(int capability);

}  // namespace stompp::binding
