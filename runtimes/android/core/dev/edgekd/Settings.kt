package dev.edgekd

/** `app.json`: all that the library needs to know of a bundle. */
class Settings internal constructor(json: Json) {
    class Input(val name: String, val dtype: String)

    val name = json["name"].text()
    val task = json["task"].text()
    val target = json["target"].text()
    val scheme = json["scheme"].text()
    val file = json["file"].text()
    val inputs = json["inputs"].list().map { Input(it["name"].text(), it["dtype"].text()) }

    /** Where not empty, the model takes texts of these lengths only, in tokens. */
    val lengths = json["lengths"].wholes()
    val maxLength = json["max_length"].whole()
    val padId = json["pad_id"].whole()
    val labels = json["labels"].list().map { it.text() }

    /** How far an output may be from the golden one. */
    val bound = json["bound"].number()

    /** Of question answering: whether a question may have no answer, the longest answer and the windows' overlap. */
    val mayBeNone = json.flag("may_be_none", false)
    val longestAnswer = json.given("longest_answer")?.whole() ?: 0
    val overlap = json.given("overlap")?.whole() ?: 0

    companion object {
        const val SCHEMA = "edgekd/app/1"

        /** Throws BundleError. */
        fun read(files: BundleFiles): Settings = try {
            val json = Json.parse(files.text("app.json"))
            if (json.given("schema")?.text() != SCHEMA) {
                throw BundleError("${files.place}: app.json is not of $SCHEMA: make the bundle with this library's edgekd")
            }
            Settings(json)
        } catch (error: JsonError) {
            throw BundleError("${files.place}: app.json cannot be read (${error.message})", error)
        }
    }
}
