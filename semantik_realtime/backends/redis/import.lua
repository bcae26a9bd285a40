-- Store a copy of a topic, as another server had it, if the topic is where the last copy left it.
--
-- KEYS  meta log state fence seen, and that of the mark unless it is a cluster
-- ARGV  1: place: "" unknown, "deleted", or "EPOCH.OFFSET.CHAIN" with the chain in hexadecimal
--       2: "1": it replaces what is there; "": its events follow what is there
--       3: the run of the command that fills the server; "": whoever does
--       4: how long to keep it, in ms
--       5 to 9: how many of the arguments after these are: fields and values of the meta hash; ids,
--       events and marks of the log; keys of states that stay; keys and events of states; jobs and
--       entries of the fence
--       the rest: producers, their last numbers, and how many s ago they appended
-- Return 1, the place where the topic is if it is another one, or 'marked' if the mark is not that
-- of a target of the run.
local meta, log, state, fence, seen = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
if KEYS[6] and ARGV[3] ~= '' then
  local fields = redis.call('HMGET', KEYS[6], 'mark', 'closed')
  local mark = fields[1] and fields[2] and cjson.decode(fields[1]) or {}
  if mark.role ~= 'target' or mark.run ~= ARGV[3] then return 'marked' end
end
local found = redis.pcall('HMGET', meta, 'epoch', 'offset', 'chain', 'deleted')
local place = ''
if found.err then
  place = 'foreign'
elseif found[4] then
  place = 'deleted'
elseif found[1] then
  place = string.format('%s.%s.%08x', found[1], found[2] or '0', tonumber(found[3] or '0') or 0)
end
if place ~= ARGV[1] then return place end
if ARGV[2] == '1' then redis.call('DEL', meta, log, state, fence, seen) end

local first = 10
local function part(count)
  local begin = first
  first = first + tonumber(count)
  return begin, first - 1
end

local begin, last = part(ARGV[5])
for i = begin, last, 2 do redis.call('HSET', meta, ARGV[i], ARGV[i + 1]) end
begin, last = part(ARGV[6])
for i = begin, last, 3 do redis.call('XADD', log, ARGV[i], 'e', ARGV[i + 1], 'm', ARGV[i + 2]) end
begin, last = part(ARGV[7])
local stays = {}
for i = begin, last do stays[ARGV[i]] = true end
for _, key in ipairs(redis.call('HKEYS', state)) do
  if not stays[key] then redis.call('HDEL', state, key) end
end
begin, last = part(ARGV[8])
for i = begin, last, 2 do redis.call('HSET', state, ARGV[i], ARGV[i + 1]) end
redis.call('DEL', fence, seen)
begin, last = part(ARGV[9])
for i = begin, last, 2 do redis.call('HSET', fence, ARGV[i], ARGV[i + 1]) end
local now = tonumber(redis.call('TIME')[1])
for i = first, #ARGV, 3 do
  local entry = string.format('%s %d', ARGV[i + 1], now - tonumber(ARGV[i + 2]))
  redis.call('HSET', seen, ARGV[i], entry)
end
for i = 1, 5 do redis.call('PEXPIRE', KEYS[i], ARGV[4]) end
return 1
