package dev.edgekd

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import ai.onnxruntime.TensorInfo
import java.nio.IntBuffer
import java.nio.LongBuffer

/** ONNX Runtime on the processor, with the settings under which the model was verified. */
internal fun openEngine(files: BundleFiles, settings: Settings, threads: Int): Engine = OnnxEngine(files, settings, threads)

private class OnnxEngine(files: BundleFiles, settings: Settings, threads: Int) : Engine {
    private val environment = OrtEnvironment.getEnvironment()
    private val session: OrtSession
    private val types: Map<String, OnnxJavaType>
    private val output: String

    override val runtime = "onnxruntime ${environment.version}"

    init {
        try {
            session = OrtSession.SessionOptions().use { options ->
                options.setIntraOpNumThreads(threads)
                options.setInterOpNumThreads(1)
                options.setOptimizationLevel(OrtSession.SessionOptions.OptLevel.ALL_OPT)
                // An x86 processor without VNNI (an emulator's) would overflow in int8 products.
                options.addConfigEntry("session.x64quantprecision", "1")
                environment.createSession(files.bytes("model/${settings.file}"), options)
            }
            types = session.inputInfo.mapValues { (_, node) -> (node.info as TensorInfo).type }
            output = session.outputNames.first()
        } catch (error: OrtException) {
            throw BundleError("${files.place}: ONNX Runtime cannot open the model: ${error.message}", error)
        }
    }

    override fun run(inputs: Map<String, IntArray>): Output {
        val tensors = HashMap<String, OnnxTensor>()
        try {
            for ((name, type) in types) {
                val values = inputs[name] ?: throw BundleError("the model wants an input '$name', which no text has")
                tensors[name] = tensorOf(values, type)
            }
            return session.run(tensors, setOf(output)).use { result ->
                val tensor = result[0] as OnnxTensor
                val values = tensor.floatBuffer
                Output(FloatArray(values.remaining()).also { values.get(it) }, tensor.info.shape.last().toInt())
            }
        } catch (error: OrtException) {
            throw BundleError("ONNX Runtime cannot run the model: ${error.message}", error)
        } finally {
            tensors.values.forEach { it.close() }
        }
    }

    private fun tensorOf(values: IntArray, type: OnnxJavaType): OnnxTensor {
        val shape = longArrayOf(1, values.size.toLong())
        return when (type) {
            OnnxJavaType.INT64 ->
                OnnxTensor.createTensor(environment, LongBuffer.wrap(values.map { it.toLong() }.toLongArray()), shape)
            OnnxJavaType.INT32 -> OnnxTensor.createTensor(environment, IntBuffer.wrap(values), shape)
            else -> throw BundleError("the model wants an input of type $type, which no text has")
        }
    }

    override fun close() = session.close()
}
