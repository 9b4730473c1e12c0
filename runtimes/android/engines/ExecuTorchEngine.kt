package dev.edgekd

import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/** ExecuTorch on the processor, with the settings under which the model was verified. */
internal fun openEngine(files: BundleFiles, settings: Settings, threads: Int): Engine =
    ExecuTorchEngine(files, settings, threads)

private class ExecuTorchEngine(files: BundleFiles, private val settings: Settings, threads: Int) : Engine {
    // ExecuTorch opens a file by its name, and maps it.
    private val module: Module = try {
        Module.load(files.file("model/${settings.file}").path, Module.LOAD_MODE_MMAP, threads)
    } catch (error: RuntimeException) {
        throw BundleError("${files.place}: ExecuTorch cannot open the model: ${error.message}", error)
    }

    override val runtime = "executorch"

    override fun run(inputs: Map<String, IntArray>): Output = try {
        val given = settings.inputs.map { EValue.from(tensorOf(inputs.getValue(it.name), it.dtype)) }
        val output = module.forward(*given.toTypedArray())[0].toTensor()
        Output(output.dataAsFloatArray, output.shape().last().toInt())
    } catch (error: RuntimeException) {
        throw BundleError("ExecuTorch cannot run the model: ${error.message}", error)
    }

    private fun tensorOf(values: IntArray, dtype: String): Tensor {
        val shape = longArrayOf(1, values.size.toLong())
        return when (dtype) {
            "int64" -> Tensor.fromBlob(LongArray(values.size) { values[it].toLong() }, shape)
            "int32" -> Tensor.fromBlob(values, shape)
            else -> throw BundleError("the model wants an input of type $dtype, which no text has")
        }
    }

    override fun close() = module.destroy()
}
