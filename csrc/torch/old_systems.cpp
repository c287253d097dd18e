// Keeps the libraries loadable on systems of 2018 (glibc 2.28, GCC 8's libstdc++), whatever the headers are that they
// are compiled with. Newer ones call a few symbols that are not there yet; these are ours, hidden from all others.
#include <ios>
#include <new>
#include <sstream>

#define STOMPP_OWN __attribute__((visibility("hidden")))

#if defined(__GLIBC__)
// glibc 2.32. False means that there may be several threads: libstdc++'s reference counts are always atomic.
extern "C" {
STOMPP_OWN char __libc_single_threaded = 0;
}

#if defined(__x86_64__) || defined(__aarch64__)
// glibc 2.34 gave dlsym, which torch's headers call from 2.14 on, a new version and kept the one of before.
#if defined(__x86_64__)
__asm__(".symver older_dlsym, dlsym@GLIBC_2.2.5");
#else
__asm__(".symver older_dlsym, dlsym@GLIBC_2.17");
#endif
extern "C" {
void* older_dlsym(void* handle, const char* name);
STOMPP_OWN void* dlsym(void* handle, const char* name) { return older_dlsym(handle, name); }
}
#endif
#endif

#if defined(__GLIBCXX__) && _GLIBCXX_USE_CXX11_ABI
namespace stompp {

// GCC 11.
STOMPP_OWN [[noreturn]] void throw_bad_array_new_length() asm("_ZSt28__throw_bad_array_new_lengthv");
void throw_bad_array_new_length() { throw std::bad_array_new_length(); }

// GCC 9: constructors without arguments.
STOMPP_OWN void construct(std::ostringstream* stream) asm(
    "_ZNSt7__cxx1119basic_ostringstreamIcSt11char_traitsIcESaIcEEC1Ev");
void construct(std::ostringstream* stream) { new (stream) std::ostringstream(std::ios_base::out); }

STOMPP_OWN void construct(std::stringstream* stream) asm(
    "_ZNSt7__cxx1118basic_stringstreamIcSt11char_traitsIcESaIcEEC1Ev");
void construct(std::stringstream* stream) { new (stream) std::stringstream(std::ios_base::in | std::ios_base::out); }

}  // namespace stompp
#endif
