package dev.edgekd

import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.ByteBuffer
import java.nio.channels.FileChannel

/** The bundle cannot be used, or not any more; the message says what to do. */
class BundleError(message: String, cause: Throwable? = null) : Exception(message, cause)

/** Where `app.json` and `model/` lie. All throw IOException. */
interface BundleFiles {
    /** For messages. */
    val place: String

    fun bytes(path: String): ByteArray

    /** Memory-mapped, read-only. */
    fun mapped(path: String): ByteBuffer

    /** For runtimes that open a file by its name. */
    fun file(path: String): File
}

internal fun BundleFiles.text(path: String): String = try {
    bytes(path).decodeToString()
} catch (error: IOException) {
    throw BundleError("$place: no bundle (${error.message})", error)
}

/** A bundle in a folder: on a desktop, or downloaded by the app. */
class FolderFiles(private val folder: File) : BundleFiles {
    override val place: String get() = folder.path

    override fun bytes(path: String): ByteArray = file(path).readBytes()

    override fun mapped(path: String): ByteBuffer = RandomAccessFile(file(path), "r").use { file ->
        file.channel.map(FileChannel.MapMode.READ_ONLY, 0, file.length())
    }

    override fun file(path: String) = File(folder, path)
}
