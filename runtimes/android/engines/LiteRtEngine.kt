package dev.edgekd

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.DataType
import org.tensorflow.lite.Interpreter
import org.tensorflow.lite.Tensor
import org.tensorflow.lite.TensorFlowLite

/** LiteRT on the processor (XNNPACK), with the settings under which the model was verified. */
internal fun openEngine(files: BundleFiles, settings: Settings, threads: Int): Engine = LiteRtEngine(files, settings, threads)

private class LiteRtEngine(files: BundleFiles, settings: Settings, threads: Int) : Engine {
    // The interpreter reads from the mapped file for as long as it lives.
    private val model = files.mapped("model/${settings.file}")
    private val names = settings.inputs.map { it.name }
    private val interpreter: Interpreter

    override val runtime = "litert ${TensorFlowLite.runtimeVersion()}"

    init {
        try {
            interpreter = Interpreter(model, Interpreter.Options().setNumThreads(threads))
        } catch (error: IllegalArgumentException) {
            throw BundleError("${files.place}: LiteRT cannot open the model: ${error.message}", error)
        }
    }

    override fun run(inputs: Map<String, IntArray>): Output = try {
        if (interpreter.signatureKeys.size > 1) runSignature(inputs) else runWhole(inputs)
    } catch (error: RuntimeException) {
        throw BundleError("LiteRT cannot run the model: ${error.message}", error)
    }

    private fun runWhole(inputs: Map<String, IntArray>): Output {
        val given = arrayOfNulls<Any>(names.size)
        for ((name, index) in inOrder()) {
            given[index] = written(inputs.getValue(name), interpreter.getInputTensor(index).dataType())
        }
        val output = interpreter.getOutputTensor(0)
        val into = bufferOf(output.numBytes())
        interpreter.runForMultipleInputsOutputs(given.requireNoNulls(), mapOf(0 to into))
        return read(into, output)
    }

    /** A file of several fixed lengths has a signature for each, whose inputs have the names of the text's. */
    private fun runSignature(inputs: Map<String, IntArray>): Output {
        val size = inputs.getValue(names[0]).size
        val key = interpreter.signatureKeys.first { interpreter.getInputTensorFromSignature(names[0], it).shape()[1] == size }
        val given = inputs.mapValues { (name, values) ->
            written(values, interpreter.getInputTensorFromSignature(name, key).dataType())
        }
        val name = interpreter.getSignatureOutputs(key).single()
        val output = interpreter.getOutputTensorFromSignature(name, key)
        val into = bufferOf(output.numBytes())
        interpreter.runSignature(given, mapOf<String, Any>(name to into), key)
        return read(into, output)
    }

    /** The place of each input: by name where the file kept names, else in the order of the tensors' names. */
    private fun inOrder(): List<Pair<String, Int>> {
        val tensors = (0 until interpreter.inputTensorCount).map { Pair(interpreter.getInputTensor(it).name(), it) }
        val found = names.map { name -> tensors.filter { name in it.first } }
        if (found.all { it.size == 1 }) return names.zip(found.map { it.single().second })
        if (tensors.size != names.size) throw BundleError("the model has ${tensors.size} inputs, not ${names.size}")
        return names.zip(tensors.sortedBy { it.first }.map { it.second })
    }

    private fun bufferOf(bytes: Int) = ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder())

    private fun written(values: IntArray, type: DataType): ByteBuffer = when (type) {
        DataType.INT32 -> bufferOf(4 * values.size).also { into -> values.forEach { into.putInt(it) } }
        DataType.INT64 -> bufferOf(8 * values.size).also { into -> values.forEach { into.putLong(it.toLong()) } }
        else -> throw BundleError("the model wants an input of type $type, which no text has")
    }.also { it.rewind() }

    private fun read(from: ByteBuffer, output: Tensor): Output {
        from.rewind()
        val values = when (output.dataType()) {
            DataType.FLOAT32 -> FloatArray(from.remaining() / 4).also { from.asFloatBuffer().get(it) }
            DataType.INT8 -> {
                val grid = output.quantizationParams()
                FloatArray(from.remaining()) { (from.get() - grid.zeroPoint) * grid.scale }
            }
            else -> throw BundleError("the model has an output of type ${output.dataType()}")
        }
        return Output(values, output.shape().last())
    }

    override fun close() = interpreter.close()
}
