package dev.edgekd

import android.content.Context
import java.io.File
import java.io.FileInputStream
import java.io.FileNotFoundException
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.channels.FileChannel

/**
 * A bundle among the app's assets, in `edgekd/NAME/`; the name may be left out where there is one bundle. Throws
 * BundleError.
 */
class AssetFiles(private val context: Context, name: String? = null) : BundleFiles {
    private val name = name ?: onlyBundle()
    override val place get() = "assets/$FOLDER/$name"

    private fun onlyBundle(): String {
        val names = context.assets.list(FOLDER).orEmpty()
        return names.singleOrNull() ?: throw BundleError(
            if (names.isEmpty()) "the app has no bundle in assets/$FOLDER: add the bundle's library module to it"
            else "the app has several bundles: name one of ${names.joinToString()}",
        )
    }

    override fun bytes(path: String): ByteArray = context.assets.open("$FOLDER/$name/$path").use { it.readBytes() }

    /** Where the app's build compresses the file it cannot be mapped: then it is read into memory. */
    override fun mapped(path: String): ByteBuffer {
        val asset = try {
            context.assets.openFd("$FOLDER/$name/$path")
        } catch (_: FileNotFoundException) {
            val content = bytes(path)
            return ByteBuffer.allocateDirect(content.size).also { it.put(content).rewind() }
        }
        return asset.use {
            FileInputStream(it.fileDescriptor).channel.map(FileChannel.MapMode.READ_ONLY, it.startOffset, it.declaredLength)
        }
    }

    /** A copy outside the APK, made once for each version of the app; copies for versions before are deleted. */
    override fun file(path: String): File {
        val version = context.packageManager.getPackageInfo(context.packageName, 0).lastUpdateTime
        val mine = File(context.noBackupFilesDir, "$FOLDER/$name")
        val copy = File(mine, "$version/${File(path).name}")
        if (copy.isFile) return copy
        mine.listFiles().orEmpty().filter { it.name != "$version" }.forEach { it.deleteRecursively() }
        val part = File(copy.path + ".part")
        if (!copy.parentFile!!.isDirectory && !copy.parentFile!!.mkdirs()) throw IOException("no folder ${copy.parent}")
        context.assets.open("$FOLDER/$name/$path").use { from -> part.outputStream().use { from.copyTo(it) } }
        if (!part.renameTo(copy)) throw IOException("$part cannot be renamed")
        return copy
    }

    private companion object {
        const val FOLDER = "edgekd"
    }
}
