// The element types that kernels take.
#pragma once

namespace bitfast {

enum class StorageType { kFloat32, kFloat64, kBFloat16 };

}  // namespace bitfast
