// The types that tensors are stored in.
#pragma once

namespace bitfast {

enum class StorageType { kFloat32, kFloat64, kBFloat16 };

}  // namespace bitfast
